//! README and docs, checked against the program: links work, configurations can be read, commands
//! exist, both READMEs have the same content, and the figures of the security policy are those of the tests.
//!
//! The reader understands Markdown fences, code spans, headings and links, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use seriatim::config::Config;
use seriatim::config::reference::sections;
use tempfile::TempDir;

use crate::support::process::{run, seriatim};

/// A page: its path relative to the repository, and its parts.
struct Page {
    path: PathBuf,
    blocks: Vec<Block>,
    headings: Vec<(usize, String)>,
    /// The text outside of code blocks.
    prose: String,
}

/// A fenced code block.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    language: String,
    text: String,
}

impl Block {
    /// The configuration that the block's commands write; `None` if there is none.
    fn written(&self) -> Option<&str> {
        let (_, rest) = self.text.split_once("config.toml <<'END'\n")?;
        rest.split_once("END\n").map(|(text, _)| text)
    }
}

/// How the name of a page in Chinese ends. It is beside the English one.
const CHINESE: &str = ".zh-CN.md";

/// The pages in Chinese that are for new users, some of which have no English one of the same name.
const CHINESE_FOLDER: &str = "docs/zh/";

fn is_chinese(path: &str) -> bool {
    path.ends_with(CHINESE) || path.starts_with(CHINESE_FOLDER)
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// === impl Page ===

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(top().join(path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut page = Self {
            path: path.into(),
            blocks: Vec::new(),
            headings: Vec::new(),
            prose: String::new(),
        };
        let mut open: Option<Block> = None;
        for line in text.lines() {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (Some(_), Some(_)) => page.blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, Some(language)) => {
                    open = Some(Block {
                        language: language.into(),
                        text: String::new(),
                    });
                }
                (None, None) => {
                    let level = line.chars().take_while(|c| *c == '#').count();
                    if level > 0 {
                        page.headings.push((level, line[level..].trim().into()));
                    }
                    page.prose.push_str(line);
                    page.prose.push('\n');
                }
            }
        }
        assert!(
            open.is_none(),
            "each code block of {} is closed",
            path.display()
        );
        page
    }

    /// All pages: those on top but the changelog, which has old names, and docs.
    fn all() -> Vec<Self> {
        let mut names = Vec::new();
        for folder in ["docs", CHINESE_FOLDER] {
            let files = fs::read_dir(top().join(folder)).expect("there are docs");
            let files = files.filter_map(|entry| {
                entry
                    .expect("a readable entry")
                    .file_name()
                    .into_string()
                    .ok()
            });
            names.extend(
                files
                    .filter(|name| name.ends_with(".md"))
                    .map(|name| Path::new(folder).join(name)),
            );
        }
        let on_top = [
            "README.md",
            "README.zh-CN.md",
            "SECURITY.md",
            "CONTRIBUTING.md",
        ];
        names.extend(on_top.map(PathBuf::from));
        names.iter().map(|path| Self::read(path)).collect()
    }

    /// The anchors of the headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let anchor = |(_, heading): &(usize, String)| {
            let kept = heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .collect::<String>();
            kept.replace(' ', "-")
        };
        self.headings.iter().map(anchor).collect()
    }

    /// The targets of its links within the repository.
    fn links(&self) -> Vec<String> {
        let text = without_spans(&self.prose);
        let targets = text.split("](").skip(1);
        let targets = targets.filter_map(|rest| rest.split_once(')'));
        targets
            .map(|(target, _)| target.to_owned())
            .filter(|target| !target.contains("://"))
            .collect()
    }

    /// The code spans, also those that contain a line break.
    fn spans(&self) -> Vec<String> {
        let spans = self.prose.split('`').skip(1).step_by(2);
        spans.map(|span| span.replace('\n', " ")).collect()
    }

    /// The commands of the page: lines of shell blocks with continuations joined, and code spans.
    fn commands(&self) -> Vec<String> {
        let shells = self.blocks.iter().filter(|block| block.language == "sh");
        let lines = shells.flat_map(|block| {
            let joined = block.text.replace("\\\n", " ");
            joined.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        lines.chain(self.spans()).collect()
    }
}

fn without_spans(text: &str) -> String {
    text.split('`').step_by(2).collect()
}

/// Fails with all findings at once.
fn assert_none(wrong: &[String], rule: &str) {
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

#[test]
fn every_link_has_an_existing_target() {
    let mut wrong = Vec::new();
    let changelog = Page::read(Path::new("CHANGELOG.md"));
    for page in Page::all().into_iter().chain([changelog]) {
        for link in page.links() {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = page.path.parent().expect("a page has a folder");
            let path = match file {
                "" => page.path.clone(),
                file => folder.join(file),
            };
            let is_there = top().join(&path).exists();
            let has_anchor = || anchor.is_empty() || Page::read(&path).anchors().contains(anchor);
            if !is_there || !has_anchor() {
                wrong.push(format!("{} links to {link}", page.path.display()));
            }
        }
    }
    assert_none(&wrong, "links lead to existing pages and headings");
}

#[test]
fn every_page_of_the_docs_is_linked_from_the_readme() {
    let readme = Page::read(Path::new("README.md"));
    let links = readme.links();
    let wrong: Vec<_> = Page::all()
        .iter()
        .map(|page| page.path.display().to_string())
        .filter(|path| path.starts_with("docs/") && !is_chinese(path))
        .filter(|path| {
            !links
                .iter()
                .any(|link| link.split('#').next() == Some(path))
        })
        .collect();
    assert_none(&wrong, "the README links to each page of the docs");
}

#[test]
fn every_configuration_in_the_docs_can_be_read() {
    let mut seen = 0;
    for page in Page::all() {
        let files = page
            .blocks
            .iter()
            .filter_map(|block| match &*block.language {
                "toml" => Some(&*block.text),
                _ => block.written(),
            });
        for text in files {
            seen += 1;
            // A file without an upstream gets it from a variable or from the chart.
            let upstream = ("SERIATIM__UPSTREAM".into(), "http://127.0.0.1:1".into());
            if let Err(problems) = Config::read("it", text, &vec![upstream]) {
                panic!("in {}: {problems}\n{text}", page.path.display());
            }
        }
    }
    assert!(seen > 5, "the docs contain configurations");
}

#[test]
fn the_chinese_readme_has_the_content_of_the_english_one() {
    let english = Page::read(Path::new("README.md"));
    let chinese = Page::read(Path::new("README.zh-CN.md"));
    let levels = |page: &Page| {
        page.headings
            .iter()
            .map(|(level, _)| *level)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        levels(&english),
        levels(&chinese),
        "both READMEs have the same sections"
    );
    // Comments and drawings are in the language of the page.
    let blocks = |page: &Page| -> Vec<String> {
        let typed = page.blocks.iter().filter(|block| block.language != "text");
        let code = typed.map(|block| {
            let lines = block.text.lines();
            let bare = lines.map(|line| line.split(" # ").next().unwrap_or(line).trim_end());
            bare.collect::<Vec<_>>().join("\n")
        });
        code.collect()
    };
    assert_eq!(
        blocks(&english),
        blocks(&chinese),
        "both READMEs have the same commands and files"
    );
    let links = |page: &Page| -> BTreeSet<String> {
        let links = page.links().into_iter();
        let english = links.map(|link| link.replace(CHINESE, ".md").replace("docs/zh/", "docs/"));
        // The other README, and headings of this one.
        let is_own = |link: &String| link.starts_with("README") || link.starts_with('#');
        english.filter(|link| !is_own(link)).collect()
    };
    assert_eq!(
        links(&english),
        links(&chinese),
        "both READMEs have the same links"
    );
    let spans = |page: &Page| -> BTreeSet<String> { page.spans().into_iter().collect() };
    let missing: Vec<_> = spans(&english)
        .difference(&spans(&chinese))
        .cloned()
        .collect();
    assert_none(&missing, "both READMEs have the same code spans");
}

#[test]
fn a_page_in_chinese_has_the_sections_and_sources_of_the_english_one() {
    for chinese in Page::all() {
        let path = chinese.path.display().to_string();
        let Some(name) = path.strip_suffix(CHINESE) else {
            continue;
        };
        let english = Page::read(Path::new(&format!("{name}.md")));
        let levels = |page: &Page| -> Vec<usize> {
            let levels = page.headings.iter().map(|(level, _)| *level);
            levels.collect()
        };
        assert_eq!(levels(&english), levels(&chinese), "sections of {path}");
        let sources = |page: &Page| -> Vec<String> {
            let targets = page.prose.split("](").skip(1);
            let targets = targets.filter_map(|rest| rest.split_once(')'));
            let addresses = targets.map(|(target, _)| target.to_owned());
            addresses.filter(|target| target.contains("://")).collect()
        };
        assert_eq!(sources(&english), sources(&chinese), "addresses of {path}");
    }
}

#[test]
fn the_figures_of_the_security_policy_are_those_of_the_tests() {
    let policy = Page::read(Path::new("SECURITY.md")).prose;
    let files = |folder: &str| {
        let entries = fs::read_dir(top().join(folder)).expect("the folder is there");
        entries.count()
    };
    let seeds = files("fuzz/seeds/session_key") + files("fuzz/seeds/whole_proxy");
    let figures = [
        format!("{} cases", crate::hostile::number_of_cases()),
        format!("{} rules", crate::store_contract::rules().count()),
        format!("{} targets", files("fuzz/fuzz_targets")),
        format!("{seeds} seeds"),
    ];
    let missing = figures.into_iter().filter(|one| !policy.contains(one));
    assert_none(&missing.collect::<Vec<_>>(), "SECURITY.md has each figure");
}

#[test]
fn every_command_line_of_the_docs_is_valid() {
    let mut helps: BTreeMap<Vec<String>, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for page in Page::all() {
        for line in page.commands() {
            let line = line.replace("cargo run -- ", "seriatim ");
            let line = line.replace("../release/seriatim", "seriatim");
            let Some(rest) = line.trim_start().strip_prefix("seriatim ") else {
                continue;
            };
            let mut words = rest.split_whitespace().peekable();
            let mut command = Vec::new();
            loop {
                let help = helps.entry(command.clone()).or_insert_with(|| {
                    let output = run(&[
                        &command.iter().map(String::as_str).collect::<Vec<_>>()[..],
                        &["--help"],
                    ]
                    .concat());
                    String::from_utf8_lossy(&output.stdout).into_owned()
                });
                let (_, list) = help.split_once("Commands:\n").unwrap_or_default();
                let names = list.lines().take_while(|line| line.starts_with("  "));
                let mut names = names.filter_map(|line| line.split_whitespace().next());
                match words.peek() {
                    Some(word) if names.any(|name| name == *word) => {
                        command.push((*word).to_owned());
                        words.next();
                    }
                    _ => break,
                }
            }
            let help = &helps[&command];
            let takes_commands = help.contains("Commands:\n");
            // `list|show|release` means any of them.
            let is_unknown = takes_commands
                && words
                    .peek()
                    .is_some_and(|word| !word.starts_with('-') && !word.contains('|'));
            let mut options = words.filter(|word| word.starts_with("--") && word.len() > 2);
            let unknown_option = options.find(|word| {
                let name = word.split('=').next().unwrap_or(word);
                !help.contains(name)
            });
            if is_unknown || unknown_option.is_some() {
                wrong.push(format!("{}: {line}", page.path.display()));
            }
        }
    }
    assert_none(
        &wrong,
        "the program knows every documented command and option",
    );
}

#[test]
fn every_option_and_variable_in_the_docs_exists() {
    let sections = sections();
    let options: BTreeSet<_> = sections
        .iter()
        .flat_map(|section| section.options.iter().map(|one| section.path(one)))
        .collect();
    let mut wrong = Vec::new();
    for page in Page::all() {
        let blocks = page.blocks.iter().map(|block| block.text.clone());
        for text in page.spans().into_iter().chain(blocks) {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            for word in text.split(|c| !is_name(c)) {
                let path = match word.strip_prefix("SERIATIM__") {
                    Some(rest) => rest.to_lowercase().replace("__", "."),
                    None => word.trim_matches('.').to_owned(),
                };
                let is_variable = word.starts_with("SERIATIM__");
                let table = path.split('.').next().unwrap_or_default();
                // On those pages, values of the chart have such names too.
                let is_option = !page.path.ends_with("kubernetes.md")
                    && path.split('.').count() == 2
                    && sections.iter().any(|section| section.table == table);
                // A variable that holds a whole list.
                let is_table = is_variable && sections.iter().any(|one| one.table == path);
                if (is_variable || is_option) && !is_table && !options.contains(&path) {
                    wrong.push(format!("{}: {word}", page.path.display()));
                }
            }
        }
    }
    assert_none(&wrong, "documented options exist");
}

#[test]
fn the_readme_shows_the_real_output_of_explain() {
    let readme = Page::read(Path::new("README.md"));
    let at = readme
        .blocks
        .iter()
        .position(|block| block.text.starts_with("seriatim explain "))
        .expect("the README shows explain");
    let command = &readme.blocks[at].text;
    let (_, body) = command
        .split_once("--body '")
        .expect("the command has a body");
    let body = body.trim_end().trim_end_matches('\'');
    let folder = TempDir::new().expect("a folder for the configuration");
    let quick_start = Page::read(Path::new("docs/quick-start.md"));
    let config = quick_start.blocks.iter().find_map(Block::written);
    fs::write(
        folder.path().join("config.toml"),
        config.expect("the quick start writes a configuration"),
    )
    .expect("the file is written");
    let output = seriatim()
        .args(["explain", "--path", "/chat", "--body", body])
        .current_dir(folder.path())
        .output()
        .expect("the binary starts");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        readme.blocks[at + 1].text,
        "explain prints this with the configuration of the quick start"
    );
}

#[test]
fn the_readmes_and_the_changelog_name_the_version() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, text) in [
        ("README.md", format!("version {version} ")),
        ("README.zh-CN.md", format!("版本 {version} ")),
        ("CHANGELOG.md", version.to_owned()),
        ("docs/install.md", format!("VERSION={version}\n")),
        ("docs/zh/install.md", format!("VERSION={version}\n")),
    ] {
        let page = fs::read_to_string(top().join(path)).expect("the page is there");
        assert!(page.contains(&text), "{path} has {text:?}");
    }
}
