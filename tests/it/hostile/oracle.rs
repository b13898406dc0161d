//! Whether a request, as a backend got it, is one that nobody can read in two ways. Shared by the table
//! of hostile requests and the fuzz target, and by rules of its own: it knows nothing of the proxy.

/// Whether every reader would take the request for the same one: strict line ends, one host, one
/// framing with one value, no folded line, no name with white space, no control character in the path,
/// no trailers, nothing in the proxy's name that it hasn't set itself.
///
/// # Errors
/// With the rule that it breaks.
pub(crate) fn is_unambiguous<'t>(
    head: &[u8],
    body: usize,
    mut trailers: impl Iterator<Item = &'t str>,
) -> Result<(), String> {
    let lines = head
        .strip_suffix(b"\r\n\r\n")
        .ok_or("the head ends in an empty line")?;
    let text = String::from_utf8_lossy(lines);
    let mut lines = text.split("\r\n");
    let first: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = first[..] else {
        return Err(format!("three words in the first line: {first:?}"));
    };
    // RFC 9110 §5.6.2.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err("a method is a word".into());
    }
    if !(target.starts_with('/') || target == "*") || target.bytes().any(|byte| byte <= b' ') {
        return Err("a target is a path".into());
    }
    // To some frameworks a path ends before one (`$` in Python and PCRE).
    let path = target.split('?').next().unwrap_or_default();
    let mut decoded = percent_encoding::percent_decode_str(path);
    if decoded.any(|byte| byte < b' ' || byte == 0x7f) {
        return Err("a path has no control character".into());
    }
    let mut named = Vec::new();
    for line in lines {
        if line.contains(['\r', '\n', '\0']) {
            return Err(format!("line ends are CR LF: {line:?}"));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or("a name and a value in each line")?;
        if name.is_empty() || name.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(format!("a name has no white space: {name:?}"));
        }
        named.push((
            name.to_ascii_lowercase().replace('_', "-"),
            value.trim().to_owned(),
        ));
    }
    let values = |wanted: &str| {
        let found = named.iter().filter(|(name, _)| name == wanted);
        found.map(|(_, value)| &**value).collect::<Vec<_>>()
    };
    if values("host").len() != 1 {
        return Err("one host".into());
    }
    match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([], []) | ([], ["chunked"]) => {}
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            if *length != body.to_string() {
                return Err("as long as it says".into());
            }
        }
        other => return Err(format!("one framing with one value: {other:?}")),
    }
    let own: Vec<_> = named
        .iter()
        .filter(|(name, _)| name.starts_with("x-seriatim-"))
        .collect();
    match &own[..] {
        [] => {}
        [(name, value)]
            if name == "x-seriatim-fence" && value.parse::<u64>().is_ok_and(|n| n > 9999) => {}
        other => return Err(format!("the proxy's own name: {other:?}")),
    }
    // What wishes to go on in another protocol says so in two lines, and in no others.
    match (&values("connection")[..], &values("upgrade")[..]) {
        ([], []) => {}
        ([option], [_]) if option.eq_ignore_ascii_case("upgrade") => {}
        other => return Err(format!("connection and upgrade are for one hop: {other:?}")),
    }
    for hop in ["keep-alive", "proxy-connection", "expect"] {
        if !values(hop).is_empty() {
            return Err(format!("{hop} is for one hop"));
        }
    }
    if values("te").iter().any(|value| *value != "trailers") {
        return Err("te is for one hop".into());
    }
    // Some servers show trailers to the application as headers.
    if let Some(name) = trailers.next() {
        return Err(format!("no trailers: {name:?}"));
    }
    if !values("trailer").is_empty() {
        return Err("none announced either".into());
    }
    Ok(())
}
