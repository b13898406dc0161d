"""Hand-written variants: every kind of difference that has been seen, and those that readers are known for.

What client libraries send is marked as honest; all else is somebody who tries. Each kind of source has a
list of its own; what many of them share is written once and put in every place where it can stand.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator

from variant import Variant

JSON = b"content-type: application/json"
FORM = b"content-type: application/x-www-form-urlencoded"
MULTIPART = b"content-type: multipart/form-data; boundary=b"
TURN = b'{"session_id":"@A@"}'

# Content types under which a body may be sent that is another kind.
TYPES = [
    None,
    b"",
    b"application/json",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data",
    b"multipart/form-data; boundary=b",
    b"text/plain",
    b"text/plain; charset=utf-8",
    b"text/html",
    b"application/octet-stream",
    b"application/xml",
    b"application/vnd.api+json",
    b"application/ld+json",
    b"application/json5",
    b"application/jsonp",
    b"application/x-json",
    b"text/json",
    b"APPLICATION/JSON",
    b"application/json;",
    b"application/json; charset=",
    b"application/json, text/plain",
    b"text/plain, application/json",
    b"application/json application/x-www-form-urlencoded",
    b"application/x-www-form-urlencoded; charset=utf-8",
    b"application/x-www-form-urlencoded, application/json",
    b"application/x-www-form-urlencoded;application/json",
    b"application/x-www-form-urlencoded2",
    b"application/x-url-encoded",
    b"multipart/mixed; boundary=b",
    b"multipart/related; boundary=b",
    b"multipart/form-data; boundary=b; charset=utf-16",
    b"application/*",
    b"*/*",
    b"json",
]
CHARSETS = ["utf-8", "UTF8", '"utf-8"', "utf-7", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "iso-8859-1"]
CHARSETS += ["us-ascii", "shift_jis", "gbk", "big5", "cp1252", "cp500", "cp037", "rot13", "x-user-defined", "idna", "punycode"]

# White space, what looks like nothing, and digits that aren't ASCII.
BLANKS = [b" ", b"\t", b"\x0b", b"\x0c", b"\x1f", b"\xc2\x85", b"\xc2\xa0", b"\xe2\x80\x83", b"\xe2\x80\x8b", b"\xe3\x80\x80"]
BLANKS += [b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x7f", b"\xc2\xad", b"\xe2\x81\xa0"]


def quoted(text: bytes) -> bytes:
    """Every byte percent-encoded."""
    return b"".join(b"%%%02X" % byte for byte in text)


def pairs() -> Iterator[tuple[str, bytes, bool]]:
    """Spellings of the field session_id in a query or in a form."""
    yield "plain", b"session_id=@A@", True
    yield "beside others", b"x=1&session_id=@A@&y=a%20b+c", True
    yield "percent-encoded", b"session_id=%73@TAIL@", True
    yield "twice equal", b"session_id=@A@&session_id=@A@", False
    yield "twice", b"session_id=@A@&session_id=@B@", False
    yield "empty first", b"session_id=&session_id=@A@", False
    yield "empty last", b"session_id=@A@&session_id=", False
    yield "bare first", b"session_id&session_id=@A@", False
    yield "behind &&", b"&&session_id=@A@", False
    yield "behind ?", b"?session_id=@A@", False
    yield "value of =", b"session_id==@A@", False
    yield "name %-encoded", b"session%5Fid=@A@", False
    yield "name %-encoded beside", b"session_id=@A@&session%5fid=@B@", False
    yield "raw UTF-8", "session_id=@A@é".encode(), False
    yield "raw UTF-8 beside", "session_id=@A@é&session_id=@A@%C3%A9".encode(), False
    yield "raw not UTF-8", b"session_id=@A@\xe9", False
    yield "not UTF-8", b"session_id=@A@%ff", False
    yield "overlong", b"session_id=@A@%c0%80", False
    yield "surrogate", b"session_id=@A@%ed%a0%80", False
    yield "broken %", b"session_id=@A@%", False
    yield "broken %z", b"session_id=@A@%zz", False
    yield "broken %u", b"session_id=%u0073@TAIL@", False
    yield "plus", b"session_id=@A@+x", False
    yield "colon", b"session_id=@A@:x", False
    for mark in (b"&", b";", b"&amp;", b",", b"|", b"%26", b"%3B", b"#", b"%23", b"?", b"%3D", b"\n", b"%00", b" "):
        yield f"x{mark!r}session_id", b"x=1" + mark + b"session_id=@A@", False
        yield f"A{mark!r}session_id", b"session_id=@A@" + mark + b"session_id=@B@", False
        yield f"A{mark!r}x", b"session_id=@A@" + mark + b"x", False
    names = [b"session_id[]", b"session_id[0]", b"session_id[a]", b"session_id[", b"session_id]", b"[session_id]", b"[session_id"]
    names += [b"[[session_id", b"[[session_id]]", b"session[id]", b"session[id", b"session[_id", b"session.id", b"session id"]
    names += [b"session-id", b"session+id", b"Session_Id", b"SESSION_ID", b"sessionId", b".session_id", b" session_id"]
    names += [b"session_id ", b"+session_id", b"session_id+", b"session_id%00", b"session_id%00x", b"%00session_id"]
    names += [b"session_id%0a", b"%0asession_id", b"session_id%20", b"%20session_id", b"session_id%5B%5D", b"session_id%5b0%5d"]
    names += [b"session_id%ff", b"session_id%80", b"%ffsession_id", b"session_id.x", b"session_id.0", b"session%00_id", b"session_id;"]
    names += [b"session_id[$ne]", b"session_id[__proto__]", b"session_id:", b"session_id%e2%80%8b", b"$session_id", b"*session_id"]
    names += ["session＿id".encode(), "ſession_id".encode(), b"session_i%C4%91", b"session%5fid[]", b"session[id]]", b"session_id[]["]
    for name in names:
        yield f"{name!r}", name + b"=@A@", False
        yield f"beside {name!r}", b"session_id=@A@&" + name + b"=@B@", False
        yield f"behind {name!r}", name + b"=@B@&session_id=@A@", False
    for blank in BLANKS:
        yield f"{blank!r} behind", b"session_id=@A@" + quoted(blank), False
        yield f"{blank!r} before", b"session_id=" + quoted(blank) + b"@A@", False


def paths() -> Iterator[Variant]:
    def chat(name: str, target: bytes, *lines: bytes, honest: bool = False) -> Variant:
        return Variant("path", name, target, (JSON, *lines), TURN, honest=honest)

    yield chat("plain", b"/chat", honest=True)
    yield chat("with a query", b"/chat?x=1", honest=True)
    targets = [b"/chat/", b"//chat", b"/./chat", b"/x/../chat", b"/chat/.", b"/chat/..", b"/chat/x/..", b"/chat//", b"/%63hat", b"/Chat", b"/CHAT"]
    targets += [b"/chat%0A", b"/chat%0a", b"/chat%0D", b"/chat%0D%0A", b"/chat%00", b"/chat%09", b"/chat%20", b"/chat%7f", b"/chat%85", b"/chat%c2%85"]
    targets += [b"/%0Achat", b"/%00chat", b"/ch%00at", b"/ch%ffat", b"/ch%80at", b"/%ffchat", b"/chat%ff", b"/ch%c3at", b"/ch%c0%80at", b"/ch\xffat"]
    targets += [b"/chat.json", b"/chat.html", b"/chat.", b"/chat.x.y", b"/chat.json/", b"/chat%2ejson", b"/chat;x", b"/chat;x=1", b"/chat;/x", b"/;x/chat"]
    targets += [b"/chat%2f", b"/%2fchat", b"/chat%5c", b"/chat\\", b"\\chat", b"/\\chat", b"/chat%3f", b"/chat%23", b"/chat#x", b"/chat?", b"/chat??x"]
    targets += [b"/chat*", b"/chat+", b"/chat%2b", b"/chat,", b"/chat~", b"/chat'", b"/chat\"", b"/chat$", b"/chat&", b"/chat=", b"/chat:", b"/chat|"]
    targets += [b"//x/chat", b"///chat", b"/index.php/chat", b"/chat/index.php", b"/%2e/chat", b"/x/%2e%2e/chat", b"/..;/chat", b"/chat/..;", b"/%252e/chat"]
    targets += [b"/%2563hat", b"/%u0063hat", b"/%c1%a3hat", "/ｃhat".encode(), b"/%ef%bd%83hat", b"/chat%e2%80%8b", b"/chat%ef%bb%bf", b"/cha%74%0A?x", b"/chat//..", b"/x//../chat", b"/chat/x//..", b"//../chat"]
    targets += [b"http://backend.test/chat", b"http://other.test/chat", b"https://backend.test/chat", b"HTTP://backend.test/chat", b"http:/chat"]
    targets += [b"http://backend.test:80/chat", b"http://u@backend.test/chat", b"http://backend.test//chat", b"chat", b"*/chat", b"http:///chat", b"x:/chat"]
    targets += [b"http://backend.test/chat%0A", b"/chat\t", b"/chat\x0b", b"/chat\x0c", b"/chat\xa0", b"/chat\x85", b"http://backend.test\\/chat"]
    for target in targets:
        yield chat(f"{target!r}", target)
    for line in (b"x-original-url: /chat", b"x-rewrite-url: /chat", b"x-forwarded-prefix: /chat", b"x-script-name: /x", b"script_name: /x", b"x-http-path: /chat", b"path_info: /chat", b"path-info: /chat", b"script-name: /x"):
        yield chat(f"/x with {line!r}", b"/x", line)
        yield chat(f"/x/chat with {line!r}", b"/x/chat", line)

    yield Variant("path id", "plain", b"/path/@A@/runs", honest=True)
    yield Variant("path id", "last", b"/thread/@A@", method=b"GET", honest=True)
    yield Variant("path id", "last, HEAD", b"/thread/@A@", method=b"HEAD")
    marks = [b".json", b";x=1", b"%0A", b"%0D", b"%00", b"%09", b"%20", b"+", b"%ff", b"\xff", b"%2f", b"%2fx", b"%5cx", b"/../@B@", b"%2f..%2f@B@", b"?x", b"#x"]
    marks += [b"%3fx", b"%23x", b"%25", b"%", b"%zz", b"%2520", b":", b"%3A", b".", b"%c3%a9", "é".encode(), b"%c3%a9", b"/", b"//", b"/.", b"%2e", b"%u0020"]
    for mark in marks + [quoted(blank) for blank in BLANKS]:
        yield Variant("path id", f"A{mark!r}", b"/thread/@A@" + mark, method=b"GET")
        yield Variant("path id", f"A{mark!r}/runs", b"/path/@A@" + mark + b"/runs")
        yield Variant("path id", f"{mark!r}A", b"/thread/" + mark + b"@A@", method=b"GET")
        yield Variant("path id", f"/runs{mark!r}", b"/path/@A@/runs" + mark)
    for target in (b"/thread//../@A@", b"/path/@A@//../runs", b"/path//../@A@/runs", b"/path/@A@/x/../runs", b"/path/@A@/;x/runs", b"/path/@A@/runs//.."):
        yield Variant("path id", f"{target!r}", target)
    yield Variant("path id", "%-encoded", b"/thread/%73@TAIL@", method=b"GET")
    yield Variant("path id", "twice %-encoded", b"/thread/%2573@TAIL@", method=b"GET")
    yield Variant("path id", "dots before", b"/path/@B@/../@A@/runs")
    yield Variant("path id", "in front", b"/path//@A@/runs")


def methods() -> Iterator[Variant]:
    yield Variant("method", "GET", b"/query?session_id=@A@", method=b"GET", honest=True)
    yield Variant("method", "PUT", b"/put?session_id=@A@", method=b"PUT", body=b"", honest=True)
    for method in (b"HEAD", b"head", b"get", b"Get", b"POST", b"OPTIONS", b"GET ", b"TRACE", b"PROPFIND", b"GETX", b"QUERY"):
        yield Variant("method", f"{method!r} for GET", b"/query?session_id=@A@", method=method)
    yield Variant("method", "preflight for GET", b"/query?session_id=@A@", (b"access-control-request-method: GET",), method=b"OPTIONS")
    headers = [b"x-http-method-override", b"x-http-method", b"x-method-override", b"x_http_method_override", b"X-HTTP-Method-Override", b"_method"]
    for header in headers:
        for method in (b"PUT", b"put", b" PUT ", b"PUT, x", b"Put"):
            yield Variant("method", f"{header!r}: {method!r}", b"/put?session_id=@A@", (header + b": " + method,), b"")
        yield Variant("method", f"{header!r} twice", b"/put?session_id=@A@", (header + b": POST", header + b": PUT"), b"")
        yield Variant("method", f"{header!r} GET to PUT", b"/put?session_id=@A@", (header + b": PUT",), method=b"GET")
        for route, line, body in ((b"chat", JSON, TURN), (b"form", FORM, b"session_id=@A@")):
            yield Variant("method", f"{header!r} PUT to POST {route!r}", b"/" + route, (line, header + b": POST"), body, b"PUT")
            yield Variant("method", f"{header!r} GET to POST {route!r}", b"/" + route, (line, header + b": POST"), body, b"GET")
    # Not in a field of the body: docs/sessions.md says what a route for a backend that reads one needs.
    yield Variant("method", "query _method", b"/put?session_id=@A@&_method=PUT", (FORM,), b"")


def queries() -> Iterator[Variant]:
    for name, pair, honest in pairs():
        yield Variant("query", name, b"/query?" + pair, method=b"GET", honest=honest)
    for target in (b"/query;session_id=@A@", b"/query;session_id=@A@?session_id=@B@", b"/query;x?session_id=@A@", b"/query%3Fsession_id=@A@"):
        yield Variant("query", f"{target!r}", target, method=b"GET")
    for target in (b"/query?#session_id=@A@", b"/query?session_id=@A@#&session_id=@B@", b"/query#?session_id=@A@", b"http://backend.test/query?session_id=@A@"):
        yield Variant("query", f"{target!r}", target, method=b"GET")
    yield Variant("query", "also in a form", b"/query?session_id=@A@", (FORM,), b"session_id=@B@", b"GET")
    yield Variant("query", "only in a form", b"/query", (FORM,), b"session_id=@B@", b"GET")
    yield Variant("form", "also in the query", b"/form?session_id=@B@", (FORM,), b"session_id=@A@")
    yield Variant("form", "only in the query", b"/form?session_id=@B@", (FORM,), b"x=1")
    yield Variant("JSON", "also in the query", b"/chat?session_id=@B@", (JSON,), TURN)
    yield Variant("JSON", "only in the query", b"/chat?session_id=@B@", (JSON,), b"{}")


def headers() -> Iterator[Variant]:
    def header(name: str, *lines: bytes, honest: bool = False, trailers: tuple[bytes, ...] = ()) -> Variant:
        return Variant("trailer" if trailers else "header", name, b"/header", (JSON, *lines), b"{}", honest=honest, trailers=trailers)

    plain = b"x-session-id: @A@"
    yield header("plain", plain, honest=True)
    yield header("in capitals", b"X-SESSION-ID: @A@", honest=True)
    yield header("white space", b"x-session-id:  @A@ \t")
    yield header("with a user", plain, b"x-user-id: u1", honest=True)
    yield header("no space", b"x-session-id:@A@")
    yield header("twice equal", plain, plain)
    yield header("twice", plain, b"x-session-id: @B@")
    yield header("user twice", plain, b"x-user-id: u1", b"x-user-id: u2")
    yield header("user twice equal", plain, b"x-user-id: u1", b"x-user-id: u1")
    yield header("list", b"x-session-id: @A@, @B@")
    yield header("empty first", b"x-session-id:", plain)
    yield header("empty last", plain, b"x-session-id: ")
    yield header("folded", b"x-session-id: @A@\r\n @B@")
    yield header("folded at once", b"x-session-id:\r\n @A@")
    yield header("quoted", b'x-session-id: "@A@"')
    yield header("%-encoded", b"x-session-id: %73@TAIL@")
    yield header("Latin-1", b"x-session-id: @A@\xe9")
    yield header("UTF-8", "x-session-id: @A@é".encode())
    yield header("encoded word", b"x-session-id: =?utf-8?q?@A@?=")
    names = [b"x_session_id", b"x-session_id", b"x.session.id", b"x session id", b"x-session-id ", b" x-session-id", b"x-session-id\t", b"\tx-session-id"]
    names += [b"x-session-id\x00", b"x-session-id\x0b", b"http-x-session-id", b"http_x_session_id", b"x~session~id", b"x-session-id[]", b"x[session[id"]
    names += [b"x-session-id\xa0", b"\xa0x-session-id", b"x+session+id", b"x\xadsession-id", b"X-Session-Id", b"x--session-id", b"xsessionid", b"x$session$id"]
    names += [b"x-session-\xc4\xb1d", b"redirect-x-session-id", b"x-session-id%00", b"x*session-id", b"x'session'id", b"x!session!id", b"x^session-id", b"x`session-id"]
    for name in names:
        yield header(f"{name!r}", name + b": @A@")
        yield header(f"beside {name!r}", plain, name + b": @B@")
        yield header(f"behind {name!r}", name + b": @B@", plain)
    for blank in BLANKS:
        yield header(f"{blank!r} behind", plain + blank)
        yield header(f"{blank!r} before", b"x-session-id: " + blank + b"@A@")
    for mark in (b"\n", b"\r", b"\r\n", b"\x00", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xe2\x80\xa8"):
        yield header(f"hidden behind {mark!r}", b"x: y" + mark + b"x-session-id: @A@")
        yield header(f"A{mark!r}another", plain + mark + b"x-session-id: @B@")
    for connection in (b"connection: x-session-id", b"connection: close, x-session-id", b"connection: x-user-id", b"proxy-connection: x-session-id"):
        yield header(f"{connection!r}", connection, plain, b"x-user-id: u1")
    for name in (b"x-forwarded-for", b"x_forwarded_for", b"X.Forwarded.For", b"x-forwarded_for", b"x-forwarded-for ", b"forwarded", b"x-real-ip"):
        yield header(f"from {name!r}", plain, name + b": 9.9.9.9")
    late = (b"x-session-id: @A@",)
    yield header("alone", trailers=late)
    yield header("announced", b"trailer: x-session-id", trailers=late)
    yield header("announced with TE", b"trailer: x-session-id", b"te: trailers", trailers=late)
    yield header("beside one in the head", plain, trailers=(b"x-session-id: @B@",))
    yield header("equal to one in the head", plain, trailers=late)
    yield header("twice", trailers=late + late)
    yield header("underscores", trailers=(b"x_session_id: @A@",))
    yield header("a user", plain, trailers=(b"x-user-id: admin",))
    yield header("an announced user", plain, b"trailer: x-user-id", trailers=(b"x-user-id: admin",))
    yield header("from", plain, trailers=(b"x-forwarded-for: 9.9.9.9",))
    yield header("announced from", plain, b"trailer: x-forwarded-for", trailers=(b"x-forwarded-for: 9.9.9.9",))
    yield header("harmless", plain, trailers=(b"x-checksum: 1",))
    yield header("content length", plain, trailers=(b"content-length: 3",))
    yield Variant("trailer", "a cookie", b"/cookie", trailers=(b"cookie: session_id=@A@",), body=b"")
    yield Variant("trailer", "another cookie", b"/cookie", (b"cookie: session_id=@A@",), trailers=(b"cookie: session_id=@B@",), body=b"")
    yield Variant("trailer", "content type", b"/chat", trailers=(JSON,), body=TURN)
    yield Variant("trailer", "content type in its place", b"/both", (FORM,), b"session_id=@A@&x={", trailers=(JSON,))


def modes() -> Iterator[Variant]:
    def mode(name: str, *lines: bytes, honest: bool = False, trailers: tuple[bytes, ...] = ()) -> Iterator[Variant]:
        for where in (b"/mode/@A@", b"/halt/@A@"):
            yield Variant("mode", f"{name} to {where!r}", where, lines, b"", honest=honest, trailers=trailers)

    chat, stop = b"x-mode: chat", b"x-mode: stop"
    yield from mode("chat", chat, honest=True)
    yield from mode("stop", stop, honest=True)
    yield from mode("none", honest=True)
    values = [b"Chat", b"CHAT", b"cha", b"chatter", b'"chat"', b"chat;v=1", b"chat ;v", b"a, chat", b"chat,a", b"chat, stop", b"stop, chat", b"stop,chat", b"chat,", b",chat", b"", b"*", b"Stop", b"stop;v=1", b"stop,", b"stop, stop"]
    values += [blank + value for value in (b"chat", b"stop") for blank in BLANKS] + [value + blank for value in (b"chat", b"stop") for blank in BLANKS]
    for value in values:
        yield from mode(f"{value!r}", b"x-mode: " + value)
        yield from mode(f"{value!r} behind stop", stop, b"x-mode: " + value)
        yield from mode(f"{value!r} before stop", b"x-mode: " + value, stop)
    names = [b"x_mode", b"X-Mode", b"X_MODE", b"x.mode", b"x mode", b"x~mode", b"x$mode", b"x--mode", b"xmode", b"x-mode ", b" x-mode", b"x-mode\t", b"\tx-mode", b"x-mode\x00", b"x-mode\x0b", b"http_x_mode", b"http-x-mode", b"x-mode[]", b"x-mode\xa0", b"x-mode%00"]
    for name in names:
        yield from mode(f"chat by {name!r}", name + b": chat")
        yield from mode(f"stop by {name!r}", name + b": stop")
        yield from mode(f"chat by {name!r} behind stop", stop, name + b": chat")
        yield from mode(f"chat by {name!r} before stop", name + b": chat", stop)
        yield from mode(f"stop by {name!r} behind stop", stop, name + b": stop")
        yield from mode(f"stop by {name!r} behind chat", chat, name + b": stop")
    for mark in (b"\n", b"\r", b"\r\n", b"\r\n ", b"\x00", b"\x0c", b"\x85"):
        yield from mode(f"chat hidden behind {mark!r}", b"x: y" + mark + chat)
        yield from mode(f"stop{mark!r}chat", stop + mark + chat)
    for connection in (b"connection: x-mode", b"connection: close, x-mode", b"connection: x_mode"):
        for line in (chat, stop, b"x_mode: chat"):
            yield from mode(f"{line!r} with {connection!r}", connection, line)
    yield from mode("late chat", trailers=(chat,))
    yield from mode("late chat behind stop", stop, trailers=(chat,))
    yield from mode("announced chat behind stop", stop, b"trailer: x-mode", trailers=(chat,))
    for kind in TYPES:
        lines = () if kind is None else (b"content-type: " + kind,)
        yield Variant("mode", f"kind {kind!r}", b"/kind/@A@", lines, b"{}", honest=kind in (b"application/json", b"text/plain"))
    for line in (b"content_type: application/json", b"content_type: text/plain", b"http_content_type: application/json", b"Content-Type: text/plain", b"content-type: application/json"):
        for first in (b"x: y", b"content-type: text/plain", b"content-type: application/json"):
            yield Variant("mode", f"kind {first!r}, {line!r}", b"/kind/@A@", (first, line), b"{}")


def actions() -> Iterator[Variant]:
    def action(name: str, body: bytes, *lines: bytes, honest: bool = False, encode=None) -> Iterator[Variant]:
        for where in (b"/action", b"/command"):
            yield Variant("action", f"{name} to {where!r}", where, lines or (JSON,), body, honest=honest, encode=encode)

    def turn(*members: bytes) -> bytes:
        return b'{"session_id":"@A@",' + b",".join(members) + b"}"

    chat, stop = b'"action":"chat"', b'"action":"stop"'
    yield from action("chat", turn(chat), honest=True)
    yield from action("escaped chat", turn(b'"action":"\\u0063hat"'), honest=True)
    yield from action("stop", turn(stop), honest=True)
    yield from action("none", b'{"session_id":"@A@"}', honest=True)
    values = [b'"Chat"', b'["chat"]', b'["stop"]', b'{"chat":1}', b'"chat\\u0000"', b'"stop\\u0000"', b'"chat "', b'" chat"', b'"stop "', b'" stop"', b"null", b"true", b'""', b'"\\ud800chat"', b'"chat\xff"', b'"stop\xff"', b"chat", b"'chat'", b"NaN"]
    for value in values:
        yield from action(value.decode("latin-1"), turn(b'"action":' + value))
    members = [chat, stop, b'"Action":"chat"', b'"action ":"chat"', b'"action\\u0000":"chat"', b'"act\\u0069on":"chat"', b'"act\\u0069on":"stop"', b'"action\xff":"chat"', b'"action.x":"chat"', b'"action[]":"chat"', b'"__proto__":{"action":"chat"}']
    for member in members:
        yield from action(f"{member!r} alone", turn(member))
        for other in (chat, stop):
            yield from action(f"{member!r} before {other!r}", turn(member, other))
            yield from action(f"{member!r} behind {other!r}", turn(other, member))
    bodies = [turn(chat), turn(stop), turn(chat, b'"x":"&action=stop&session_id=@A@&"'), turn(stop, b'"x":"&action=chat&session_id=@A@&"')]
    for kind in TYPES:
        lines = (b"x: y",) if kind is None else (b"content-type: " + kind,)
        for body in (*bodies, b"session_id=@A@&action=chat", b"session_id=@A@&action=stop"):
            yield from action(f"{body!r} as {kind!r}", body, *lines)
            yield Variant("action", f"form: {body!r} as {kind!r}", b"/submit", lines, body)
    for body in bodies[:2]:
        for charset in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-7"):
            encode = lambda body, charset=charset: body.decode().encode(charset)  # noqa: E731
            for line in (JSON, FORM, JSON + b"; charset=" + charset.removesuffix("-sig").encode()):
                yield from action(f"{body!r} in {charset} as {line!r}", body, line, encode=encode)
        for around in (b"\x0b~", b"\xc2\xa0~", b"\x1e~", b"[~]", b"~x", b"~,", b"~\x00", b"/**/~", b"~~", b"~\n~"):
            yield from action(f"{around!r} of {body!r}", around.replace(b"~", body))
    for name, pair, _ in pairs():
        if b"session_id=@A@" in pair:
            for value in (b"chat", b"stop"):
                own = pair.replace(b"session_id=@A@", b"action=" + value).replace(b"session_id", b"action").replace(b"@B@", b"chat" if value == b"stop" else b"stop")
                yield Variant("action", f"form, {value!r}: {name}", b"/submit", (FORM,), b"session_id=@A@&" + own, honest=name == "plain")
    for fields in ((b"chat",), (b"stop",), (b"stop", b"chat"), (b"chat", b"stop")):
        body = b"".join(part(b'form-data; name="action"', field, end=b"") for field in fields)
        body += part(b'form-data; name="session_id"', b"@A@")
        yield Variant("action", f"multipart, {fields!r}", b"/submit", (MULTIPART,), body)


def cookies() -> Iterator[Variant]:
    def cookie(name: str, *values: bytes, honest: bool = False) -> Variant:
        return Variant("cookie", name, b"/cookie", tuple(b"cookie: " + value for value in values), b"", honest=honest)

    yield cookie("plain", b"session_id=@A@", honest=True)
    yield cookie("beside others", b"a=b; session_id=@A@; c=d=e", honest=True)
    yield cookie("beside JSON", b'prefs={"a":"b"}; session_id=@A@', honest=True)
    yield cookie("twice equal", b"session_id=@A@; session_id=@A@")
    yield cookie("twice", b"session_id=@A@; session_id=@B@")
    yield cookie("two lines", b"session_id=@A@", b"session_id=@B@")
    yield cookie("two lines, other first", b"x=y", b"session_id=@A@")
    yield cookie("empty first", b"session_id=; session_id=@A@")
    yield cookie("bare first", b"session_id; session_id=@A@")
    yield cookie("empty last", b"session_id=@A@; session_id=")
    yield cookie("%-encoded", b"session_id=%73@TAIL@")
    yield cookie("%-encoded name", b"session%5fid=@A@")
    yield cookie("%-encoded name beside", b"session_id=@A@; session%5fid=@B@")
    yield cookie("colon", b"session_id=@A@%3Ax")
    yield cookie("plus", b"session_id=@A@+x")
    yield cookie("percent", b"session_id=@A@%")
    yield cookie("%ff", b"session_id=@A@%ff")
    yield cookie("%00", b"session_id=@A@%00x")
    yield cookie("Latin-1", b"session_id=@A@\xe9")
    yield cookie("UTF-8", "session_id=@A@é".encode())
    values = [b'"@A@"', b'"@A@', b'@A@"', b'"\\163@TAIL@"', b'"@A@\\"x"', b"'@A@'", b"@A@,x", b"@A@\\", b"@A@ x", b" @A@", b"@A@ ", b'"@A@;x"', b'" @A@"', b'"@A@ "']
    values += [b"j:\"@A@\"", b"j:{}", b"s:@A@.x", b"j:71", b'j:"71"', b"j:[71]", b"=@A@", b"@A@=", b'"@A@"x', b'"@A@" x', b"<@A@>", b"@A@\tx", b"{@A@}", b"(@A@)", b"\\163@TAIL@", b'"%73@TAIL@"']
    for value in values:
        yield cookie(f"value {value!r}", b"session_id=" + value)
        yield cookie(f"value {value!r} before another", b"session_id=" + value + b"; session_id=@B@")
    for mark in (b";", b"; ", b",", b", ", b" ", b"  ", b"&", b"\t", b";;", b"; ;", b"; \t", b"|", b"\x0b", b"%3B", b";\xa0"):
        yield cookie(f"x{mark!r}session_id", b"x=y" + mark + b"session_id=@A@")
        yield cookie(f"A{mark!r}session_id", b"session_id=@A@" + mark + b"session_id=@B@")
    names = [b"Session_Id", b"SESSION_ID", b"session.id", b"session id", b"session[id", b"session_id[]", b"session_id[0]", b" session_id", b"session_id ", b"\tsession_id"]
    names += [b"session-id", b"$session_id", b"__Host-session_id", b"__Secure-session_id", b"__host-session_id", b"session_id[", b"+session_id", b"%20session_id", b"session_id%00", b'"session_id"', b"session_id%5b%5d"]
    names += [b"session%2eid", b".session_id", b"_session_id", b"session%20id", b"session_id\xa0", b"\xa0session_id"]
    for name in names:
        yield cookie(f"name {name!r}", name + b"=@A@")
        yield cookie(f"name {name!r} beside", b"session_id=@A@; " + name + b"=@B@")
        yield cookie(f"name {name!r} before", name + b"=@B@; session_id=@A@")
    for text in (b'x="y; session_id=@A@"', b'x="y; session_id=@B@; z="; session_id=@A@', b'x="; session_id=@A@', b"$Version=1; session_id=@A@; $Path=/", b"=session_id=@A@"):
        yield cookie(f"{text!r}", text)
    for text in (b"x=y session_id=@A@", b"x session_id=@A@", b"[x]=1; session_id=@A@", b"session_id=@A@; domain=x; session_id=@B@", b"session_id@A@", b"x=\x00; session_id=@A@"):
        yield cookie(f"{text!r}", text)
    yield Variant("cookie", "cookie_ header", b"/cookie", (b"cookie: session_id=@A@", b"cookie2: session_id=@B@"), b"")
    yield Variant("cookie", "http_cookie", b"/cookie", (b"cookie: session_id=@A@", b"http_cookie: session_id=@B@"), b"")


def forms() -> Iterator[Variant]:
    for name, pair, honest in pairs():
        yield Variant("form", name, b"/form", (FORM,), pair, honest=honest)
        yield Variant("form or JSON", f"form: {name}", b"/both", (FORM,), pair, honest=honest)
    for kind in TYPES:
        lines = () if kind is None else (b"content-type: " + kind,)
        for route in (b"form", b"both", b"either", b"chat", b"json"):
            kinds = {"form": b"session_id=@A@", "multipart": part(b'form-data; name="session_id"', b"@A@")}
            for what, body in kinds.items():
                yield Variant("content type", f"{what} to {route!r} as {kind!r}", b"/" + route, lines, body)
    for charset in CHARSETS:
        line = FORM + b"; charset=" + charset.encode()
        yield Variant("charset", f"form, {charset}", b"/form", (line,), b"session_id=@A@%E9")
        yield Variant("charset", f"form, {charset}, +", b"/form", (line,), b"session_id=%2BAHM-@TAIL@")
        line = MULTIPART + b"; charset=" + charset.encode()
        yield Variant("charset", f"multipart, {charset}", b"/form", (line,), part(b'form-data; name="session_id"', b"@A@\xe9"))
        for field in (b"_charset_=" + charset.encode(), b"utf8=%E2%9C%93"):
            yield Variant("charset", f"form, {field!r}", b"/form", (FORM,), field + b"&session_id=@A@%E9")


def part(disposition: bytes, value: bytes, *lines: bytes, more: bytes = b"", end: bytes = b"--b--\r\n") -> bytes:
    head = b"\r\n".join((b"--b", b"Content-Disposition: " + disposition, *lines))
    return head + b"\r\n\r\n" + value + b"\r\n" + more + end


def multiparts() -> Iterator[Variant]:
    plain = b'form-data; name="session_id"'

    def form(name: str, body: bytes, line: bytes = MULTIPART, honest: bool = False) -> Iterator[Variant]:
        yield Variant("multipart", name, b"/form", (line,), body, honest=honest)
        yield Variant("multipart", f"{name}, or JSON", b"/both", (line,), body, honest=honest)

    yield from form("plain", part(plain, b"@A@"), honest=True)
    file = part(b'form-data; name="f"; filename="a.txt"', b"{}", b"Content-Type: text/plain", end=b"")
    yield from form("beside a file", file + part(plain, b"@A@"), honest=True)
    other = part(plain, b"@B@", end=b"")
    yield from form("twice", other + part(plain, b"@A@"))
    yield from form("twice equal", part(plain, b"@A@", end=b"") + part(plain, b"@A@"))
    dispositions = [b"form-data; name=session_id", b"form-data; name='session_id'", b'form-data; name="session_id"; filename="x"', b'form-data; name="session_id"; filename=""']
    dispositions += [b"form-data; name*=utf-8''session_id", b"form-data; name=\"x\"; name*=utf-8''session_id", b"form-data; name*0=session; name*1=_id", b'form-data;name="session_id"']
    dispositions += [b'form-data; name="x"; name="session_id"', b'form-data; name="session_id"; name="x"', b'form-data; NAME="session_id"', b'form-data ; name = "session_id"', b'name="session_id"']
    dispositions += [b'FORM-DATA; name="session_id"', b'attachment; name="session_id"', b'inline; name="session_id"', b'file; name="session_id"', b'form-data, name="session_id"']
    dispositions += [b'form-data; name="sess\\ion_id"', b'form-data; name="session%5Fid"', b'form-data; name="session_id', b'form-data; name=session_id"', b'form-data; name=""; x="session_id"']
    dispositions += [b'form-data; name="session_id[]"', b'form-data; name="[session_id"', b'form-data; name="[[session_id"', b'form-data; name="session.id"', b'form-data; name=" session_id"']
    dispositions += [b'form-data; name="session_id "', b'form-data; name="session_id\x00"', b'form-data; name="session_id\x00x"', b'form-data; name="SESSION_ID"', b'form-data; name="session_id[0]"']
    dispositions += [b'form-data; name="session_id"; filename*=utf-8\'\'x', b'form-data;; name="session_id"', b'form-data; x="; name=\\"y"; name="session_id"', b"form-data;\tname=\"session_id\""]
    dispositions += [b'form-data; name="=?utf-8?q?session_id?="', b'form-data; name="session_id"; filename', b'form-data; filename=x; name="session_id"', b'form-data; name="\xffsession_id"', b'; name="session_id"']
    dispositions += [b'form-data; name="x; name="session_id"', b'form-data; x=y"; name="session_id"', b'form-data; name="session[id"', b'form-data; name="session id"', b"form-data; name=\"session_id\";"]
    dispositions += [b'form-data;\r\n name="session_id"', b'form-data; name="session_id";\r\n x=y', b'form-data; name="session_\r\n id"', b'form-data; name="session_id"; name*=utf-8\'\'x']
    for disposition in dispositions:
        yield from form(f"{disposition!r}", part(disposition, b"@A@"))
        yield from form(f"{disposition!r} before", part(disposition, b"@B@", more=part(plain, b"@A@")[:-7]))
        yield from form(f"{disposition!r} behind", part(plain, b"@A@", end=b"") + part(disposition, b"@B@"))
    heads = [b"Content-Type: text/plain", b"Content-Type: application/json", b"Content-Type: text/plain; charset=utf-16", b"Content-Type: multipart/mixed; boundary=c"]
    heads += [b"Content-Type: text/plain; charset=utf-7", b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: quoted-printable", b"Content-Length: 2", b"Content-Length: 99"]
    # Not "Content-Transfer-Encoding: 7bit", which clients in Java send: Sanic reads the same text for every value then.
    heads += [b"Content-Encoding: gzip", b'Content-Disposition: form-data; name="x"', b"x", b": x", b" x", b"Content-Type: application/octet-stream", b"Content-Type:"]
    for head in heads:
        yield from form(f"with {head!r}", part(plain, b"@A@", head))
        yield from form(f"with {head!r} beside", part(plain, b"@A@", end=b"") + part(plain, b"@B@", head))
        yield from form(f"{head!r} first", b"--b\r\n" + head + b"\r\nContent-Disposition: form-data; name=\"session_id\"\r\n\r\n@A@\r\n--b--\r\n")
    yield from form("base64", part(plain, b"QEFA", b"Content-Transfer-Encoding: base64"))
    yield from form("quoted printable", part(plain, b"=73@TAIL@", b"Content-Transfer-Encoding: quoted-printable"))
    bodies = {
        "no end": part(plain, b"@A@", end=b""),
        "no line break at all": part(plain, b"@A@", end=b"")[:-2],
        "end without its line break": part(plain, b"@A@", end=b"--b--"),
        "preamble": b"x\r\n" + part(plain, b"@A@"),
        "preamble without line break": b"x" + part(plain, b"@A@"),
        "line break before": b"\r\n" + part(plain, b"@A@"),
        "epilogue": part(plain, b"@A@") + part(plain, b"@B@"),
        "epilogue with text": part(plain, b"@A@") + b"x\r\n" + part(plain, b"@B@"),
        "LF only": part(plain, b"@A@").replace(b"\r\n", b"\n"),
        "CR only": part(plain, b"@A@").replace(b"\r\n", b"\r"),
        "LF before the boundary": part(plain, b"@A@").replace(b"@A@\r\n", b"@A@\n"),
        "LF behind the boundary": part(plain, b"@A@").replace(b"--b\r\n", b"--b\n"),
        "LF in the head": part(plain, b"@A@").replace(b"\r\n\r\n", b"\n\n"),
        "boundary in the value": part(plain, b"@A@--b--"),
        "boundary with LF in the value": part(plain, b"@B@\n--b\nContent-Disposition: form-data; name=\"session_id\"\n\n@A@"),
        "boundary with more": part(plain, b"@B@\r\n--bx\r\nContent-Disposition: form-data; name=\"session_id\"\r\n\r\n@A@"),
        "boundary with blanks": part(plain, b"@A@").replace(b"--b\r\n", b"--b  \r\n"),
        "boundary with three": part(plain, b"@A@").replace(b"--b\r\n", b"---b\r\n"),
        "empty part before": b"--b\r\n\r\n" + part(plain, b"@A@"),
        "no head": b"--b\r\n\r\n@A@\r\n--b--\r\n",
        "value over two lines": part(plain, b"@A@\r\nx"),
        "value with a line break before": part(plain, b"\r\n@A@"),
        "value with a blank": part(plain, b"@A@ "),
        "space before the colon": part(plain, b"@A@").replace(b"Disposition:", b"Disposition :"),
        "no space": part(plain, b"@A@").replace(b"Disposition: ", b"Disposition:"),
        "folded head": part(plain, b"@A@").replace(b"form-data; ", b"form-data;\r\n\t"),
        "long head": part(plain, b"@A@", b"x: " + b"y" * 9000),
        "BOM": b"\xef\xbb\xbf" + part(plain, b"@A@"),
        "value with a BOM": part(plain, b"\xef\xbb\xbf@A@"),
        "JSON behind": part(plain, b"@A@") + b'{"session_id":"@B@"}',
        "JSON before": b'{"session_id":"@B@","x":"\r\n' + part(plain, b"@A@") + b'"}',
        "parts within parts": part(b"form-data; name=x", part(plain, b"@A@").replace(b"--b", b"--c"), b"Content-Type: multipart/mixed; boundary=c"),
    }
    for name, body in bodies.items():
        yield from form(name, body)
    kinds = [b'boundary="b"', b"boundary=b; boundary=c", b"boundary=c; boundary=b", b"BOUNDARY=b", b"boundary = b", b"boundary=b ", b"boundary=b;x", b"boundary=b,c", b"x; boundary=b"]
    kinds += [b"boundary*=utf-8''b", b"boundary*0=b", b"boundary='b'", b'boundary="b', b"boundary=b\"", b'boundary="\\b"', b"boundary=", b"xboundary=b", b"boundary:b", b'x="; boundary=c"; boundary=b']
    for kind in kinds:
        yield from form(f"{kind!r}", part(plain, b"@A@"), b"content-type: multipart/form-data; " + kind)
        yield from form(f"{kind!r}, two", part(plain, b"@A@") + part(plain, b"@B@").replace(b"--b", b"--c"), b"content-type: multipart/form-data; " + kind)
    yield from form("no space in the type", part(plain, b"@A@"), b"content-type: multipart/form-data;boundary=b")
    yield from form("comma in the type", part(plain, b"@A@"), b"content-type: multipart/form-data, boundary=b")
    yield from form("capitals in the type", part(plain, b"@A@"), b"content-type: Multipart/Form-Data; boundary=b")


def bodies() -> Iterator[Variant]:
    def json(name: str, body: bytes, *lines: bytes, honest: bool = False, encode=None, kind: str = "JSON") -> Iterator[Variant]:
        for route in (b"chat", b"json", b"both", b"either"):
            yield Variant(kind, f"{name} to {route!r}", b"/" + route, lines or (JSON,), body, honest=honest, encode=encode)

    yield from json("plain", TURN, honest=True)
    yield from json("with blanks", b' { "x" : [1, {"session_id": 2}] ,\r\n\t"session_id" : "@A@" } \n', honest=True)
    yield from json("with a charset", TURN, JSON + b"; charset=utf-8", honest=True)
    yield from json("escaped", b'{"session_id":"\\u0073@TAIL@"}', honest=True)
    yield from json("as curl sends it", TURN, FORM, honest=True)
    members = [b'"session_id":"@B@"', b'"Session_Id":"@B@"', b'"session\\u005fid":"@B@"', b'"session_id\\u0000":"@B@"', b'"session_id ":"@B@"', b'"session_id":null', b'"session_id":""']
    members += [b'"sessionId":"@B@"', b'"SESSION_ID":"@B@"', b'"__proto__":{"session_id":"@B@"}', b'"session_id":["@B@"]', b'"session_id":"@A@"', b'"session.id":"@B@"', b'"session_id[]":"@B@"']
    members += ['"ſession_id":"@B@"'.encode(), '"sessıon_id":"@B@"'.encode(), b'"session_id\\ud800":"@B@"', b'"session_id\\ufeff":"@B@"', b'"session_id\xff":"@B@"', b'"session_id\\u00ad":"@B@"']
    for member in members:
        yield from json(f"before {member!r}", b"{" + member + b',"session_id":"@A@"}')
        yield from json(f"behind {member!r}", b'{"session_id":"@A@",' + member + b"}")
        yield from json(f"alone {member!r}", b"{" + member + b"}")
    yield from json("only in __proto__", b'{"__proto__":{"session_id":"@A@"}}')
    yield from json("only in constructor", b'{"constructor":{"prototype":{"session_id":"@A@"}}}')
    documents = [b'[{"session_id":"@A@"}]', b'"session_id=@A@"', b'{"session_id":"@A@"}{"session_id":"@B@"}', b'{"session_id":"@A@"}\n{"session_id":"@B@"}', b'{"session_id":"@A@"}x']
    documents += [b'{"session_id":"@A@"}\x00', b'{"session_id":"@A@"},', b'{"session_id":"@A@",}', b"{'session_id':'@A@'}", b'{session_id:"@A@"}', b'/*x*/{"session_id":"@A@"}', b'{"session_id":"@A@"}//']
    documents += [b'{"session_id":"@A@","x":NaN}', b'{"session_id":"@A@","x":Infinity}', b'{"session_id":"@A@","x":01}', b'{"session_id":"@A@","x":1.}', b'{"session_id":"@A@","x":+1}']
    documents += [b'\xef\xbb\xbf{"session_id":"@A@"}', b'\x00{"session_id":"@A@"}', b'\xc2\xa0{"session_id":"@A@"}', b'\x0b{"session_id":"@A@"}', b'\x1e{"session_id":"@A@"}', b")]}',\n{\"session_id\":\"@A@\"}"]
    documents += [b'{"session_id":"@A@\x01"}', b'{"session_id":"@A@\n"}', b'{"session_id":"@A@\\x00"}', b'{"session_id":"@A@\xff"}', b'{"session_id":"@A@\xed\xa0\x80"}', b'{"session_id":"@A@\\ud800"}']
    documents += [b'{"session_id":"@A@\\udc00\\ud800"}', b'{"session_id":"@A@\\ud83d\\ude00"}', b'{"session_id":"@A@\xf0\x9f\x98\x80"}', b'{"session_id":"@A@\\/"}', b'{"session_id":"@A@\\u0000"}']
    documents += [b'{"session_id":"@A@\xc0\x80"}', b'{"x":"\xff","session_id":"@A@"}', b'{"x":"\\ud800","session_id":"@A@"}', b'{"session_id":"@A@\\U0073"}', b'{"session_id":"@A@:x"}', b'{"session_id":true}']
    documents += [b'{"session_id":{"a":"@A@"}}', b'{"session_id":["@A@"]}', b'{"session_id":"@A@"', b'{"session_id":"@A@"}}', b'{"session_id":"@A@"]', b'{"session_id""@A@"}', b"{}", b"", b"null", b"{"]
    documents += [b'{"x":' + b"[" * 200 + b"]" * 200 + b',"session_id":"@A@"}', b'{"x":1e999,"session_id":"@A@"}', b'{"x":' + b"9" * 400 + b',"session_id":"@A@"}', b'{"session_id":"@A@","x":-}']
    for document in documents:
        yield from json(f"{document[:60]!r}", document)
    # None beyond 2^53, which docs/sessions.md tells of: JavaScript and PHP round them.
    for number in (b"71%b", b"-71%b", b"71%b.0", b"71%b.5", b"71%be0", b"71%bE+1", b"1e-%b", b"0%b", b"+%b", b"0x%b", b"-0", b"0", b"1_0%b"):
        yield Variant("JSON", f"number {number!r}", b"/int", (JSON,), b'{"session_id":' + number.replace(b"%b", b"@A@") + b"}", ids="int")
        yield Variant("JSON", f"number {number!r}, text", b"/json", (JSON,), b'{"session_id":' + number.replace(b"%b", b"@A@") + b"}", ids="int")
    yield from json("number", b'{"session_id":71}')
    for blank in BLANKS:
        yield from json(f"{blank!r} behind", b'{"session_id":"@A@' + blank + b'"}')
        yield from json(f"{blank!r} before", b'{"session_id":"' + blank + b'@A@"}')
    for kind in TYPES:
        lines = (b"x: y",) if kind is None else (b"content-type: " + kind,)
        yield from json(f"as {kind!r}", TURN, *lines, kind="content type")
        for field in (b'{"session_id":"@A@","x":"&session_id=@B@&"}', b'{"session_id":"@A@"}&session_id=@B@', b'session_id=@B@&x={"session_id":"@A@"}', b'{"x":"&session_id=@A@&"}'):
            yield from json(f"{field!r} as {kind!r}", field, *lines, kind="JSON and form")
        body = b'{"session_id":"@A@","x":"\r\n' + part(b'form-data; name="session_id"', b"@B@") + b'"}'
        yield from json(f"JSON around multipart as {kind!r}", body, *lines, kind="JSON and form")
        body = body.replace(b"\r\n", b"\\r\\n")
        yield from json(f"JSON around escaped multipart as {kind!r}", body, *lines, kind="JSON and form")
    yield from json("two content types", b'{"session_id":"@A@","x":"&session_id=@B@&"}', JSON, FORM, kind="JSON and form")
    yield from json("two content types, form first", b'{"session_id":"@A@","x":"&session_id=@B@&"}', FORM, JSON, kind="JSON and form")
    yield from json("content_type", b'{"session_id":"@A@","x":"&session_id=@B@&"}', JSON, b"content_type: application/x-www-form-urlencoded", kind="JSON and form")
    for charset in CHARSETS:
        line = JSON + b"; charset=" + charset.encode()
        yield from json(f"named {charset}", TURN, line, kind="charset")
        yield from json(f"é named {charset}", b'{"session_id":"@A@\xe9"}', line, kind="charset")
        yield from json(f"UTF-8 é named {charset}", b'{"session_id":"@A@\xc3\xa9"}', line, kind="charset")
        yield from json(f"+AHM- named {charset}", b'{"session_id":"+AHM-@TAIL@"}', line, kind="charset")
        yield from json(f"+AHs- named {charset}", b'+AHsAIg-session+AF8-id+ACIAOgAi-@A@+ACIAfQ-', line, kind="charset")
        try:
            "{".encode(charset.strip('"'))
        except (LookupError, UnicodeError):
            continue
        encode = lambda body, charset=charset.strip('"'): body.decode().encode(charset)  # noqa: E731
        yield from json(f"in {charset}", TURN, line, encode=encode, kind="charset")
        yield from json(f"in {charset}, unnamed", TURN, JSON, encode=encode, kind="charset")
    encodings = {b"gzip": gzip.compress, b"deflate": zlib.compress, b"x-gzip": gzip.compress, b"GZIP": gzip.compress, b"identity": bytes, b"": bytes}
    encodings |= {b"gzip, gzip": lambda body: gzip.compress(gzip.compress(body)), b"gzip, identity": gzip.compress, b"zlib": zlib.compress, b"compress": bytes, b"aws-chunked": bytes}
    for name, encode in encodings.items():
        yield from json(f"in {name!r}", TURN, JSON, b"content-encoding: " + name, encode=encode, kind="encoding")
        yield from json(f"named {name!r}", TURN, JSON, b"content-encoding: " + name, kind="encoding")
        yield Variant("encoding", f"form in {name!r}", b"/form", (FORM, b"content-encoding: " + name), b"session_id=@A@", encode=encode)
    raw = lambda body: zlib.compress(body)[2:-4]  # noqa: E731
    two = lambda body: gzip.compress(body) + gzip.compress(body.replace(b"a", b"b"))  # noqa: E731
    yield from json("raw deflate", TURN, JSON, b"content-encoding: deflate", encode=raw, kind="encoding")
    yield from json("two members", TURN, JSON, b"content-encoding: gzip", encode=two, kind="encoding")
    yield from json("gzip with more", TURN, JSON, b"content-encoding: gzip", encode=lambda body: gzip.compress(body) + body, kind="encoding")
    yield from json("content_encoding", TURN, JSON, b"content_encoding: gzip", encode=gzip.compress, kind="encoding")
    yield from json("transfer-encoding gzip", TURN, JSON, b"te: gzip", encode=gzip.compress, kind="encoding")
    for expect in (b"expect: 100-continue", b"expect: x"):
        yield from json(f"{expect!r}", TURN, JSON, expect)
    yield Variant("JSON", "chunked", b"/chat", (JSON,), TURN, trailers=(b"x-t: 1",))


def typed() -> Iterator[Variant]:
    def spelt(ids: str, spellings: list[bytes], plain: bytes = b"@A@") -> Iterator[Variant]:
        kind = f"{ids} id"
        for spelling in (plain, *spellings):
            honest = spelling == plain
            escaped = b"".join(b"\\u%04x" % byte if byte < 0x20 else bytes((byte,)) for byte in spelling)
            safe = b"".join(bytes((byte,)) if 0x20 < byte < 0x7F and byte not in b"%?#{}\"<>\\^`|&+" else b"%%%02X" % byte for byte in spelling)
            yield Variant(kind, f"body {spelling!r}", b"/" + ids.encode(), (JSON,), b'{"session_id":"' + escaped + b'"}', honest=honest, ids=ids)
            yield Variant(kind, f"path {spelling!r}", b"/" + ids.encode() + b"/" + safe, method=b"GET", honest=honest, ids=ids)
            yield Variant(kind, f"query {spelling!r}", b"/" + ids.encode() + b"q?session_id=" + safe, method=b"GET", honest=honest, ids=ids)

    uuids = [b"@UPPER@", b"@BARE@", b"@BIG@", b"{@A@}", b"urn:uuid:@A@", b"URN:UUID:@A@", b"{@BARE@}", b"@A@}", b"{@A@", b"uuid:@A@", b"{urn:uuid:@A@}", b"@A@-", b"-@A@", b"0x@BARE@"]
    uuids += [blank + b"@A@" for blank in BLANKS] + [b"@A@" + blank for blank in BLANKS] + [b"@A@\n", b"@A@\x00", b"--@BARE@--", b"@A@+", b"(@A@)", b"@A@;", b"_@A@"]
    yield from spelt("uuid", uuids)
    ints = [b"0@A@", b"00@A@", b"+@A@", b"-@A@", b"@A@.0", b"@A@.", b"@A@_0", b"1_@A@", b"@A@e0", b"0x@A@", b"0b1", b"@A@n", b"@A@L", b"@A@abc", b"@A@,0", b"@A@ 5", b"0o17", b"@A@.00"]
    ints += [b"@A@.5", b"- @A@", b"+ @A@", b"++@A@", b"--@A@", b"-0", b"0", "@A@٣".encode(), "@A@５".encode(), "²@A@".encode(), "@A@²".encode(), b"(@A@)", b"@A@\x00", b"@A@\n", b"\n@A@", b"@A@@A@@A@@A@"]
    ints += [blank + b"@A@" for blank in BLANKS] + [b"@A@" + blank for blank in BLANKS]
    yield from spelt("int", ints)
    for spelling in (b"@A@", b"@UPPER@", b"S@TAIL@", b"@A@%C4%B0", b"@A@%E1%BA%9E", b"@A@%CE%A3", b"@A@%E2%84%AA", b"@A@%C3%89", b"@A@%EF%BC%A1"):
        yield Variant("lower id", f"query {spelling!r}", b"/lower?session_id=" + spelling, method=b"GET", honest=spelling == b"@A@", ids="lower")


def table() -> list[Variant]:
    """All of them, in order."""
    kinds = (paths, methods, queries, headers, modes, cookies, forms, multiparts, bodies, actions, typed)
    return [variant for kind in kinds for variant in kind()]
