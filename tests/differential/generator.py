"""Every byte at every interesting place of a request: thousands of variants, of which a seed takes some.

A place is marked by `~`; there the byte stands raw, percent-encoded, or as a JSON escape, as that place has it.
"""

from __future__ import annotations

from collections.abc import Iterator

from table import FORM, JSON, MULTIPART, TURN
from variant import Variant

MARK = b"~"
BYTES = [bytes((byte,)) for byte in range(256)]

PATHS = [b"/~chat", b"/ch~at", b"/chat~", b"/chat/~", b"/~/chat", b"~/chat", b"/chat~x", b"/chat~/x", b"/chat~?x", b"/x/..~/chat", b"/x~/../chat", b"http://backend.test~/chat"]
PATH_IDS = [b"/thread/~@A@", b"/thread/@A@~", b"/thread/@A@~x", b"/thread/@A@~@B@", b"/thread~/@A@", b"/~thread/@A@", b"/path/@A@~/runs", b"/path/~@A@/runs"]
PATH_IDS += [b"/path/@A@/runs~", b"/path/@A@/ru~ns", b"/path/@A@/~runs", b"/path/@A@~x/runs", b"/path/@A@/~/runs", b"/pa~th/@A@/runs"]
PAIRS = [b"~session_id=@A@", b"session~id=@A@", b"session_id~=@A@", b"session_id=~@A@", b"session_id=@A@~", b"session_id~@A@", b"session_id=@A@~x", b"session_id=@A@~@B@"]
PAIRS += [b"x=1~session_id=@A@", b"session_id=@A@~session_id=@B@", b"session_id=@A@&session~id=@B@", b"session_id=@A@&session_id~=@B@", b"session_id=@A@&~session_id=@B@"]
PAIRS += [b"session_id=@A@&session_id~x=@B@", b"session_id=@A@&x~session_id=@B@", b"session_id~x=@A@", b"session_id~~=@A@", b"session_id~]=@A@", b"session~id~=@A@", b"x~session_id=@A@"]
HEADERS = [b"x-session-id~: @A@", b"~x-session-id: @A@", b"x~session-id: @A@", b"x~session~id: @A@", b"x-session-id:~@A@", b"x-session-id: ~@A@", b"x-session-id: @A@~"]
HEADERS += [b"x-session-id: @A@~@B@", b"x: y~x-session-id: @A@", b"x: y~\nx-session-id: @A@", b"x: y\r~x-session-id: @A@", b"x-session-id~@A@", b"x-session-id: @A@\r\n~@B@"]
BESIDE = [b"x-session-id~: @B@", b"~x-session-id: @B@", b"x-session~id: @B@", b"x~session~id: @B@", b"x: y~x-session-id: @B@", b"x: y\r\n~x-session-id: @B@"]
MODES = [b"~x-mode: chat", b"x~mode: chat", b"x-mode~: chat", b"x-mode:~chat", b"x-mode: ~chat", b"x-mode: chat~", b"x-mode: chat~stop", b"x-mode: stop~chat", b"x-mode: stop, chat~", b"x: y~x-mode: chat"]
ACTIONS = [b'{"session_id":"@A@","action":"chat~"}', b'{"session_id":"@A@","action":"~chat"}', b'{"session_id":"@A@","action~":"chat"}', b'{"session_id":"@A@","action":"stop","~action":"chat"}']
ACTIONS += [b'{"session_id":"@A@","action~":"chat","action":"stop"}', b'{"session_id":"@A@"~"action":"chat"}', b'{"session_id":"@A@","action":"chat"}~', b'~{"session_id":"@A@","action":"chat"}']
SUBMITS = [b"session_id=@A@&action=chat~", b"session_id=@A@&action=~chat", b"session_id=@A@&action~=chat", b"session_id=@A@&action=stop&~action=chat", b"session_id=@A@~action=chat", b"action=chat~session_id=@A@"]
SUBMITS += [b"session_id=@A@&action=stop~action=chat", b"session_id=@A@&action=chat~action=stop", b"session_id=@A@&action~=chat&action=stop"]
COOKIES = [b"session_id~=@A@", b"~session_id=@A@", b"session~id=@A@", b"session_id=~@A@", b"session_id=@A@~", b"session_id=@A@~@B@", b'session_id="@A@~"', b'session_id="@A@~@B@"']
COOKIES += [b"x=y~session_id=@A@", b"x=y;~session_id=@A@", b"session_id=@A@~session_id=@B@", b"session_id=@A@~ session_id=@B@", b"x=y~; session_id=@A@", b"x~; session_id=@A@", b"session_id~@A@"]
COOKIES += [b"session_id=@A@; session~id=@B@", b"session_id=@A@; session_id~=@B@", b"session~id=@B@; session_id=@A@", b"session_id~=@B@; session_id=@A@", b'x="~; session_id=@A@', b"x=~; session_id=@A@"]
MEMBERS = [b'~{"session_id":"@A@"}', b'{~"session_id":"@A@"}', b'{"~session_id":"@A@"}', b'{"session~id":"@A@"}', b'{"session_id~":"@A@"}', b'{"session_id"~:"@A@"}', b'{"session_id":~"@A@"}']
MEMBERS += [b'{"session_id":"~@A@"}', b'{"session_id":"@A@~"}', b'{"session_id":"@A@~@B@"}', b'{"session_id":"@A@"~}', b'{"session_id":"@A@"}~', b'{"session_id":"@A@"~"session_id":"@B@"}']
MEMBERS += [b'{"session_id":"@A@","session_id~":"@B@"}', b'{"session_id":"@A@","session~id":"@B@"}', b'{"session_id~":"@B@","session_id":"@A@"}', b'{"x":~,"session_id":"@A@"}', b'{"session_id":~71@TAIL@}']
MEMBERS += [b'{"session_id":"@A@"}~{"session_id":"@B@"}', b'{"x":"~","session_id":"@A@"}', b'{"x":"&session_id=@B@&~","session_id":"@A@"}', b'{"session_id":"@A@","x":"~session_id=@B@~"}', b'~session_id=@B@&x={"session_id":"@A@"}']
ESCAPED = [b'{"session_id":"~@A@"}', b'{"session_id":"@A@~"}', b'{"session_id":"@A@~@B@"}', b'{"session_id~":"@A@"}', b'{"session_id":"@A@","session_id~":"@B@"}', b'{"session~id":"@A@"}']
TYPES = [b"application/json~", b"~application/json", b"application~json", b"application/json~; charset=utf-8", b"application/json; charset=utf-8~", b"application/json;~charset=utf-8", b"application/json; charset~=utf-16"]
TYPES += [b"application/x-www-form-urlencoded~", b"~application/x-www-form-urlencoded", b"application/x-www-form-urlencoded~application/json", b"application/json~application/x-www-form-urlencoded"]
HEAD = b"--b\r\nContent-Disposition: form-data; "
PART = HEAD + b'name="session_id"\r\n\r\n'
PARTS = [b"~" + PART + b"@A@\r\n--b--\r\n", PART + b"~@A@\r\n--b--\r\n", PART + b"@A@~\r\n--b--\r\n", PART + b"@A@\r\n~--b--\r\n", PART + b"@A@\r\n--b~--\r\n", PART + b"@A@\r\n--b--~\r\n", PART + b"@A@~\n--b--\r\n"]
PARTS += [PART + b"@A@\r~--b--\r\n", b"--b~\r\n" + PART[5:] + b"@A@\r\n--b--\r\n", b"--b~\n" + PART[5:] + b"@A@\r\n--b--\r\n", b"--b\r~" + PART[5:] + b"@A@\r\n--b--\r\n", PART[:-3] + b"~\n@A@\r\n--b--\r\n"]
PARTS += [PART + b"@B@\r\n--b~\r\n" + PART[5:] + b"@A@\r\n--b--\r\n", PART + b"@B@~\n--b\r\n" + PART[5:] + b"@A@\r\n--b--\r\n", PART + b"@B@\r\n~--b\r\n" + PART[5:] + b"@A@\r\n--b--\r\n"]
PARTS += [PART.replace(b"\r\n\r\n", b"\r\nx~: y\r\n\r\n") + b"@A@\r\n--b--\r\n", PART.replace(b"\r\n\r\n", b"\r\n~x: y\r\n\r\n") + b"@A@\r\n--b--\r\n", PART.replace(b"\r\n\r\n", b"\r\nx: y~\r\n\r\n") + b"@A@\r\n--b--\r\n"]
NAMES = [b'name="session_id~"', b'name="~session_id"', b'name="session~id"', b'name=~"session_id"', b'name="session_id"~', b'name~="session_id"', b'~name="session_id"', b"name=session_id~", b"name=~session_id"]
NAMES += [b'name="session_id"~; x=y', b'name="session_id";~x=y', b'name="session_id"; filename~="x"', b'name="session_id"; ~filename="x"', b'name="session_id~x"', b'x="~"; name="session_id"', b'name="x~"; name="session_id"']
DISPOSITIONS = [b"Content~Disposition: form-data; ", b"Content-Disposition~: form-data; ", b"~Content-Disposition: form-data; ", b"Content-Disposition:~form-data; ", b"Content-Disposition: form-data~; ", b"Content-Disposition: form-data;~"]
BOUNDARIES = [b"multipart/form-data; boundary=b~", b"multipart/form-data; boundary=~b", b'multipart/form-data; boundary="b~"', b"multipart/form-data; boundary~=b", b"multipart/form-data;~boundary=b", b"multipart/form-data~; boundary=b"]
BOUNDARIES += [b"multipart/form-data; boundary=b~c", b"~multipart/form-data; boundary=b", b"multipart/form-data; x~boundary=b", b"multipart/form-data; boundary=b~; boundary=c"]
TYPED = {"uuid": [b"@A@~", b"~@A@", b"~@BARE@", b"@BARE@~", b"~@A@~", b"@A@~x"], "int": [b"@A@~", b"~@A@", b"@A@~0", b"0~@A@", b"@A@~5", b"~-@A@"], "lower": [b"@A@~", b"~@A@"]}


def percent(byte: bytes) -> bytes:
    return b"%%%02X" % byte[0]


def places(templates: list[bytes], *spellings) -> Iterator[bytes]:
    """The templates with every byte in their place, spelt in these ways."""
    for template in templates:
        for spelling in spellings:
            for byte in BYTES:
                yield template.replace(MARK, spelling(byte))


def raw(byte: bytes) -> bytes:
    return byte


def twice(byte: bytes) -> bytes:
    return b"%%25%02X" % byte[0]


def unicode(byte: bytes) -> bytes:
    return b"\\u00%02x" % byte[0]


def backslash(byte: bytes) -> bytes:
    return b"\\" + byte


def shown(text: bytes) -> str:
    return repr(text.replace(b"@A@", b"A").replace(b"@B@", b"B"))[1:]


def generated() -> list[Variant]:
    """All of them, in order."""
    return [*heads(), *fields(), *bodies(), *typed()]


def heads() -> Iterator[Variant]:
    for target in places(PATHS, raw, percent, twice):
        yield Variant("path", shown(target), target, (JSON,), TURN)
    for target in places(PATH_IDS, raw, percent):
        yield Variant("path id", shown(target), target)
    for line in places(HEADERS, raw):
        yield Variant("header", shown(line), b"/header", (JSON, line), b"{}")
    for line in places(BESIDE, raw):
        yield Variant("header", f"beside {shown(line)}", b"/header", (JSON, b"x-session-id: @A@", line), b"{}")
        yield Variant("header", f"behind {shown(line)}", b"/header", (JSON, line, b"x-session-id: @A@"), b"{}")
    for line in places(MODES, raw):
        for where, other in ((b"/mode/@A@", b"x: y"), (b"/mode/@A@", b"x-mode: stop"), (b"/halt/@A@", b"x-mode: stop")):
            yield Variant("mode", f"{shown(line)} to {shown(where)} behind {shown(other)}", where, (other, line), b"")
    for kind in places(TYPES, raw):
        yield Variant("mode", f"kind {shown(kind)}", b"/kind/@A@", (b"content-type: " + kind,), b"{}")
    for line in places([b"x~session-id: @A@", b"x-session-id~: @A@", b"x-session-id: @A@~"], raw):
        yield Variant("trailer", shown(line), b"/header", (JSON,), b"{}", trailers=(line,))
    for method in places([b"~GET", b"GET~", b"~HEAD", b"HEAD~", b"G~ET"], raw):
        yield Variant("method", shown(method), b"/query?session_id=@A@", method=method)
    for value in places([b"~PUT", b"PUT~", b"POST~PUT", b"PUT~POST"], raw):
        yield Variant("method", f"override {shown(value)}", b"/put?session_id=@A@", (b"x-http-method-override: " + value,), b"")
    for name in places([b"x~http~method~override", b"x-http-method-override~", b"~x-http-method-override"], raw):
        yield Variant("method", f"override by {shown(name)}", b"/put?session_id=@A@", (name + b": PUT",), b"")


def fields() -> Iterator[Variant]:
    for pair in places(PAIRS, raw, percent):
        yield Variant("query", shown(pair), b"/query?" + pair, method=b"GET")
        yield Variant("form", shown(pair), b"/form", (FORM,), pair)
        yield Variant("form or JSON", shown(pair), b"/both", (FORM,), pair)
    for pair in places(SUBMITS, raw, percent):
        yield Variant("action", f"form {shown(pair)}", b"/submit", (FORM,), pair)
    for cookie in places(COOKIES, raw, percent):
        yield Variant("cookie", shown(cookie), b"/cookie", (b"cookie: " + cookie,), b"")
    for target in places([b"/query~session_id=@A@", b"/query?~session_id=@A@", b"/query~?session_id=@A@"], raw, percent):
        yield Variant("query", shown(target), target, method=b"GET")


def bodies() -> Iterator[Variant]:
    for member in (*places(MEMBERS, raw), *places(ESCAPED, unicode, backslash)):
        yield Variant("JSON", shown(member), b"/chat", (JSON,), member)
        yield Variant("JSON", f"{shown(member)} to '/json'", b"/json", (JSON,), member)
        yield Variant("JSON and form", f"{shown(member)} as a form", b"/both", (FORM,), member)
        yield Variant("JSON and form", f"{shown(member)} to '/either'", b"/either", (FORM,), member)
        yield Variant("JSON and form", f"{shown(member)} as nothing", b"/chat", (), member)
    for kind in places(TYPES, raw):
        line = b"content-type: " + kind
        for route in (b"/chat", b"/both"):
            yield Variant("content type", f"JSON as {shown(kind)} to {shown(route)}", route, (line,), TURN)
            yield Variant("content type", f"form as {shown(kind)} to {shown(route)}", route, (line,), b"session_id=@A@")
            yield Variant("JSON and form", f"{shown(kind)} to {shown(route)}", route, (line,), b'{"session_id":"@A@","x":"&session_id=@B@&"}')
    for body in places(ACTIONS, raw, unicode):
        for route in (b"/action", b"/command"):
            yield Variant("action", f"{shown(body)} to {shown(route)}", route, (JSON,), body)
    for body in parts():
        yield Variant("multipart", shown(body), b"/form", (MULTIPART,), body)
    for kind in places(BOUNDARIES, raw):
        yield Variant("multipart", shown(kind), b"/form", (b"content-type: " + kind,), PART + b"@A@\r\n--b--\r\n")


def parts() -> Iterator[bytes]:
    end = b"@A@\r\n--b--\r\n"
    yield from places(PARTS, raw)
    yield from places([HEAD + name + b"\r\n\r\n" + end for name in NAMES], raw, percent)
    yield from places([b"--b\r\n" + disposition + b'name="session_id"\r\n\r\n' + end for disposition in DISPOSITIONS], raw)
    beside = [PART + b"@A@\r\n" + HEAD + name + b"\r\n\r\n@B@\r\n--b--\r\n" for name in NAMES[:8]]
    yield from places(beside, raw)


def typed() -> Iterator[Variant]:
    for ids, templates in TYPED.items():
        where = b"/" + ids.encode()
        for text in places(templates, raw, unicode):
            if ids != "lower":
                yield Variant(f"{ids} id", f"body {shown(text)}", where, (JSON,), b'{"session_id":"' + text + b'"}', ids=ids)
        for text in places(templates, percent):
            if ids == "lower":
                yield Variant(f"{ids} id", f"query {shown(text)}", where + b"?session_id=" + text, method=b"GET", ids=ids)
                continue
            yield Variant(f"{ids} id", f"path {shown(text)}", where + b"/" + text, method=b"GET", ids=ids)
            yield Variant(f"{ids} id", f"query {shown(text)}", where + b"q?session_id=" + text, method=b"GET", ids=ids)
