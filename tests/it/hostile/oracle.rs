//! Decides whether a request, as a backend got it, can be read in only one way. The table of hostile
//! requests and the fuzz target use it. It has its own rules and knows nothing of the proxy.

/// Checks that every parser reads the request in the same way: strict line ends, one host, one framing
/// header with one value, no folded line, no white space in a name, no control character in the path,
/// no trailers, and no `x-seriatim-` header that the proxy has not set.
///
/// # Errors
/// The rule that the request breaks.
pub(crate) fn is_unambiguous<'t>(
    head: &[u8],
    body: usize,
    mut trailers: impl Iterator<Item = &'t str>,
) -> Result<(), String> {
    let lines = head
        .strip_suffix(b"\r\n\r\n")
        .ok_or("the head must end with an empty line")?;
    let text = String::from_utf8_lossy(lines);
    let mut lines = text.split("\r\n");
    let first: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = first[..] else {
        return Err(format!("the first line must have three words: {first:?}"));
    };
    // RFC 9110 §5.6.2.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err("the method must be a token".into());
    }
    if !(target.starts_with('/') || target == "*") || target.bytes().any(|byte| byte <= b' ') {
        return Err("the target must be a path".into());
    }
    // Some frameworks match a path up to a final line break (`$` in Python and PCRE).
    let path = target.split('?').next().unwrap_or_default();
    let mut decoded = percent_encoding::percent_decode_str(path);
    if decoded.any(|byte| byte < b' ' || byte == 0x7f) {
        return Err("the path must not have a control character".into());
    }
    let mut headers = Vec::new();
    for line in lines {
        if line.contains(['\r', '\n', '\0']) {
            return Err(format!("a line must end with CR LF: {line:?}"));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or("a header line must have a name and a value")?;
        if name.is_empty() || name.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(format!("a name must not have white space: {name:?}"));
        }
        headers.push((
            name.to_ascii_lowercase().replace('_', "-"),
            value.trim().to_owned(),
        ));
    }
    let values = |wanted: &str| {
        let found = headers.iter().filter(|(name, _)| name == wanted);
        found.map(|(_, value)| &**value).collect::<Vec<_>>()
    };
    if values("host").len() != 1 {
        return Err("there must be one host".into());
    }
    match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([], []) | ([], ["chunked"]) => {}
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            if *length != body.to_string() {
                return Err("the body must be as long as content-length says".into());
            }
        }
        other => {
            return Err(format!(
                "there must be one framing header with one value: {other:?}"
            ));
        }
    }
    let proxy_headers: Vec<_> = headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-seriatim-"))
        .collect();
    let is_tag = |tag: &str| tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    match &proxy_headers[..] {
        [] => {}
        [(fence, number), (turn, tag)]
            if (fence, turn) == (&"x-seriatim-fence".into(), &"x-seriatim-turn".into())
                && number.parse::<u64>().is_ok_and(|n| n > 9999)
                && is_tag(tag) => {}
        other => {
            return Err(format!(
                "only the proxy may set x-seriatim headers: {other:?}"
            ));
        }
    }
    // A request for an upgrade has these two headers, with one line each.
    match (&values("connection")[..], &values("upgrade")[..]) {
        ([], []) => {}
        ([option], [_]) if option.eq_ignore_ascii_case("upgrade") => {}
        other => return Err(format!("connection and upgrade are hop-by-hop: {other:?}")),
    }
    for hop in ["keep-alive", "proxy-connection", "expect"] {
        if !values(hop).is_empty() {
            return Err(format!("{hop} is hop-by-hop"));
        }
    }
    if values("te").iter().any(|value| *value != "trailers") {
        return Err("te is hop-by-hop".into());
    }
    // Some servers turn trailers into headers for the application.
    if let Some(name) = trailers.next() {
        return Err(format!("there must be no trailers: {name:?}"));
    }
    if !values("trailer").is_empty() {
        return Err("no trailer may be announced".into());
    }
    Ok(())
}
