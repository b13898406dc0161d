//! The language of error responses (`errors.language`), which is the same for every reason.

use crate::support::app::CHAT;
use crate::support::bench::{Bench, chat};
use crate::support::client::{Answer, Request};

/// The sentences for the user, in Chinese and in English, of the errors that [`errors`] provokes.
const SENTENCES: [[&str; 2]; 4] = [
    [
        "AI 正在思考中，请稍后再试",
        "The AI is thinking, please try again later",
    ],
    ["无法读取请求体", "The request's body can't be read"],
    ["智能体没有响应", "The agent gave no response"],
    ["无法读取请求", "The request can't be read"],
];

/// A refusal of the session, of the body, of the backend and of the HTTP layer, for a caller with this header.
async fn errors(bench: &Bench, accepted: Option<&str>) -> [Answer; 4] {
    let with = |request: Request| match accepted {
        Some(accepted) => request.header("accept-language", accepted),
        None => request,
    };
    let _held = bench.hold("s1").await;
    let busy = bench.call(&with(Request::turn("s1", "plain:x"))).await;
    let malformed = bench.call(&with(chat("{"))).await;
    let broken = bench.call(&with(Request::turn("s2", "close"))).await;
    let mut client = bench.client().await;
    client.send_raw(b"GET / HTTP/1.1\r\nhost : a\r\n\r\n").await;
    [busy, malformed, broken, client.answer().await]
}

fn sentence(answer: &Answer) -> String {
    let json = answer.json();
    json["error"].as_str().expect("a sentence").to_owned()
}

#[tokio::test]
async fn one_option_sets_the_language_of_every_error_response() {
    const ENGLISH: Option<&str> = Some("en-US,en;q=0.9,zh;q=0.5");
    for (table, accepted, language, of_http) in [
        ("", None, 0, 0),
        ("", ENGLISH, 0, 0),
        ("[errors]\nlanguage = \"zh\"\n", ENGLISH, 0, 0),
        ("[errors]\nlanguage = \"en\"\n", None, 1, 1),
        ("[errors]\nlanguage = \"en\"\n", Some("zh"), 1, 1),
        // A request that isn't HTTP names no language.
        ("[errors]\nlanguage = \"auto\"\n", ENGLISH, 1, 0),
        ("[errors]\nlanguage = \"auto\"\n", Some("zh-CN"), 0, 0),
        ("[errors]\nlanguage = \"auto\"\n", None, 0, 0),
    ] {
        let bench = Bench::start(&format!("{table}{CHAT}")).await;
        let answers = errors(&bench, accepted).await;
        let languages = [language, language, language, of_http];
        for ((answer, sentences), language) in answers.iter().zip(SENTENCES).zip(languages) {
            assert_eq!(
                sentence(answer),
                sentences[language],
                "{table} for {accepted:?}: {answer:?}"
            );
        }
        let detail = answers[0].json()["detail"].to_string();
        let is_chinese = detail.contains("锁已被占用");
        assert_eq!(is_chinese, language == 0, "so is its detail: {detail}");
    }
}

#[tokio::test]
async fn a_sentence_of_busy_replaces_that_of_a_busy_session_alone() {
    let tables = "[errors]\nlanguage = \"en\"\n[busy]\nerror = \"Moment\"\n";
    let bench = Bench::start(&format!("{tables}{CHAT}")).await;
    let [busy, malformed, ..] = errors(&bench, None).await;
    assert_eq!(sentence(&busy), "Moment", "the configured sentence");
    assert_eq!(sentence(&malformed), SENTENCES[1][1], "another error");
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_refused_in_the_configured_language() {
    for (language, expected) in [
        ("zh", "连接或请求过多，请稍后再试"),
        ("en", "There are too many connections or requests"),
    ] {
        let tables =
            format!("[errors]\nlanguage = \"{language}\"\n[limits]\nmax_connections = 1\n{CHAT}");
        let bench = Bench::start(&tables).await;
        let refused = bench.answer_beyond_the_limit().await;
        assert_eq!(sentence(&refused), expected, "{refused:?}");
    }
}
