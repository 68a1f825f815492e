"""AK/SK signatures, made here by hand: what must be accepted, and that every changed byte is refused.

The SDK signs every header that it sends; the Go client signs neither Host nor the project id. Both must pass. After
that one signed request is changed one byte at a time, in its method, path, query, each signed header and body.
"""
import datetime
import hashlib
import hmac
import http.client
import json
import ssl
import urllib.parse

from harness import Api, Checks, instance

checks = Checks()
api = Api()
values = api.admin
place = urllib.parse.urlsplit(api.endpoint)


def encode(text):
    return urllib.parse.quote(text, safe="-_.~")


def stamp(moment):
    return moment.strftime("%Y%m%dT%H%M%SZ")


def utc_now():
    return datetime.datetime.now(datetime.timezone.utc)


def canonical(method, target, headers, signed, body):
    path, _, query = target.partition("?")
    segments = [encode(urllib.parse.unquote(segment)) for segment in path.split("/")]
    uri = "/".join(segments)
    pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
    content = next((value for name, value in headers if name.lower() == "x-sdk-content-sha256"), None)
    return "\n".join([
        method.upper(),
        uri if uri.endswith("/") else uri + "/",
        "&".join(f"{encode(name)}={encode(value)}" for name, value in pairs),
        "".join(f"{name}:{dict((n.lower(), v) for n, v in headers)[name].strip()}\n" for name in signed),
        ";".join(signed),
        content or hashlib.sha256(body).hexdigest(),
    ])


def sign(method, target, headers, body=b"", signed=None, ak=None, sk=None, algorithm="SDK-HMAC-SHA256"):
    """The Authorization header over these headers; without a list all of them are signed."""
    signed = sorted(signed or [name.lower() for name, _ in headers])
    date = next(value for name, value in headers if name.lower() == "x-sdk-date")
    hashed = hashlib.sha256(canonical(method, target, headers, signed, body).encode()).hexdigest()
    text = f"{algorithm}\n{date}\n{hashed}"
    signature = hmac.new((sk or values["sk"]).encode(), text.encode(), hashlib.sha256).hexdigest()
    return f"{algorithm} Access={ak or values['ak']}, SignedHeaders={';'.join(signed)}, Signature={signature}"


class Wire:
    """One kept connection that sends exactly the bytes it is given."""

    def __init__(self):
        self.connection = None

    def send(self, method, target, headers, body=b""):
        for attempt in (1, 2):
            if self.connection is None:
                self.connection = self.open()
            try:
                self.connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
                for name, value in headers:
                    self.connection.putheader(name, value)
                if body or method in ("POST", "PUT"):
                    self.connection.putheader("Content-Length", str(len(body)))
                self.connection.endheaders(body or None)
                answer = self.connection.getresponse()
                content = answer.read()
                if answer.will_close:
                    self.connection = None
                return answer.status, content
            except (http.client.HTTPException, OSError):
                # The server may close the connection after a refusal.
                self.connection = None
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    @staticmethod
    def open():
        if place.scheme == "https":
            context = ssl._create_unverified_context()  # noqa: SLF001 - the certificate is self-signed
            return http.client.HTTPSConnection(place.hostname, place.port, timeout=30, context=context)
        return http.client.HTTPConnection(place.hostname, place.port, timeout=30)


wire = Wire()


def code_of(content):
    try:
        return json.loads(content).get("error_code")
    except (ValueError, AttributeError):
        return None


def send(method, target, headers, body=b""):
    status, content = wire.send(method, target, headers, body)
    return status, code_of(content), content


def python_style(date=None):
    return [
        ("Host", place.netloc), ("Content-Type", "application/json"), ("User-Agent", "python-client/1"),
        ("X-Project-Id", api.project), ("X-Sdk-Date", date or stamp(utc_now())),
    ]


def refused(claim, method, target, headers, body=b""):
    status, code, content = send(method, target, headers, body)
    checks.same(claim, (status, code), (401, "APIGW.0301"))
    return content


def test_accepted(path):
    with checks.part("every usual way to sign is accepted"):
        headers = python_style()
        target = f"{path}/restores?limit=10&offset=0"
        status, _, content = send("GET", target, [*headers, ("Authorization", sign("GET", target, headers))])
        checks.same("all headers signed, as the SDK does", (status, content[:28]), (200, b'{"restore_record_response":['))

        go = [("Accept", "application/json"), ("Content-Type", "application/json"), ("User-Agent", "golangsdk/1"),
              ("X-Sdk-Date", stamp(utc_now()))]
        unsigned = [("Host", place.netloc), ("X-Project-Id", api.project)]
        body = '{"backup_id":"00000000-0000-4000-8000-000000000000","remark":"ü"}\n'.encode()
        target = f"{path}/restores"
        status, code, _ = send("POST", target, [*go, *unsigned, ("Authorization", sign("POST", target, go, body))], body)
        checks.same("host and project unsigned, a body that ends in a line end: the call itself is judged",
                    (status, code), (400, "DCS.4031"))

        for query in ("limit=1&begin_time=20260101000000", "begin_time=20260101000000&limit=1", "limit=1&begin_time=",
                      "limit=1&begin_time", "name=a%20b&limit=1", "name=a+b&limit=1", "name=%C3%BC%2F~&limit=1"):
            headers = python_style()
            target = f"{path}/restores?{query}"
            status, _, content = send("GET", target, [*headers, ("Authorization", sign("GET", target, headers))])
            checks.that(f"query {query}", status == 200, (status, content))

        headers = python_style()
        target = f"{path}/restores"
        header = ("Authorization", sign("GET", target, headers))
        status, _, _ = send("GET", target, [*headers, header, ("X-Auth-Token", "nonsense")])
        checks.same("a token beside a signature is not looked at", status, 200)


def test_every_byte(path):
    with checks.part("one changed byte anywhere is refused"):
        target = f"{path}/restores?limit=10&offset=0"
        body = b'{"backup_id":"00000000-0000-4000-8000-000000000000","remark":"tamper with me"}'
        headers = [("Host", place.netloc), ("Content-Type", "application/json;charset=utf-8"),
                   ("User-Agent", "python-client/1"), ("X-Sdk-Date", stamp(utc_now()))]
        header = ("Authorization", sign("POST", target, headers, body))
        status, code, _ = send("POST", target, [*headers, header], body)
        checks.same("unchanged it is accepted", (status, code), (400, "DCS.4031"))

        for method in ("GET", "PUT", "DELETE", "POSU"):
            # A method that the path does not have is no reason to look less closely.
            refused(f"method {method}", method, target, [*headers, header], body if method == "PUT" else b"")
        changed_paths = 0
        for at in range(1, len(target)):
            for changed in changes(target, at):
                if same_meaning(changed, target):
                    continue
                status, code, content = send("POST", changed, [*headers, header], body)
                changed_paths += 1
                # A path that no longer is one of ours ends as unknown, and tells no more than that.
                fine = (status, code) in ((401, "APIGW.0301"), (404, "APIGW.0101"))
                checks.that(f"target {changed}", fine, (status, content))
        checks.that("many targets were tried", changed_paths > 150, changed_paths)
        for number, (name, value) in enumerate(headers):
            for at in range(len(value)):
                for changed in changes(value, at):
                    if changed.strip() == value.strip():
                        continue
                    altered = [*headers]
                    altered[number] = (name, changed)
                    refused(f"{name}: {changed}", "POST", target, [*altered, header], body)
            missing = [pair for pair in headers if pair[0] != name]
            if name != "Host":
                refused(f"without {name}", "POST", target, [*missing, header], body)
        for at in range(len(body)):
            altered = bytearray(body)
            altered[at] ^= 1
            refused(f"body byte {at}", "POST", target, [*headers, header], bytes(altered))
        refused("body cut", "POST", target, [*headers, header], body[:-1])
        refused("body longer", "POST", target, [*headers, header], body + b"\n")
        for at in range(len(header[1])):
            altered = header[1][:at] + chr(ord(header[1][at]) ^ 1) + header[1][at + 1:]
            refused(f"authorization byte {at}", "POST", target, [*headers, ("Authorization", altered)], body)


def changes(text, at):
    """One other printable character at the place, and the text without it."""
    other = "a" if text[at] != "a" else "b"
    return text[:at] + other + text[at + 1:], text[:at] + text[at + 1:]


def same_meaning(one, other):
    """Whether two targets sign alike: a client may write the same query in more than one way."""
    def parts(target):
        path, _, query = target.partition("?")
        return path.rstrip("/"), sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))

    return parts(one) == parts(other)


def test_refused(path):
    with checks.part("dates, keys and payloads"):
        target = f"{path}/restores"
        for minutes, fine in ((-16, False), (16, False), (-14, True), (14, True)):
            headers = python_style(stamp(utc_now() + datetime.timedelta(minutes=minutes)))
            status, code, _ = send("GET", target, [*headers, ("Authorization", sign("GET", target, headers))])
            wanted = (200, None) if fine else (401, "APIGW.0301")
            checks.same(f"signed {minutes} minutes from now", (status, code), wanted)
        for date in ("20261332T250000Z", "2026-01-01T00:00:00Z", "", "now"):
            headers = python_style(date or " ")
            refused(f"date {date!r}", "GET", target, [*headers, ("Authorization", sign("GET", target, headers))])
        headers = python_style()
        unsigned_date = [name.lower() for name, _ in headers if name != "X-Sdk-Date"]
        refused("the date is not signed", "GET", target,
                [*headers, ("Authorization", sign("GET", target, headers, signed=unsigned_date))])
        refused("unknown key", "GET", target, [*headers, ("Authorization", sign("GET", target, headers, ak="UNKNOWN"))])
        refused("wrong secret", "GET", target, [*headers, ("Authorization", sign("GET", target, headers, sk="x" * 40))])
        refused("another algorithm", "GET", target,
                [*headers, ("Authorization", sign("GET", target, headers, algorithm="SDK-HMAC-SM3"))])
        refused("a signed header is missing", "GET", target,
                [*headers, ("Authorization", sign("GET", target, [*headers, ("X-Gone", "1")]))])
        for word in ("", "SDK-HMAC-SHA256", "SDK-HMAC-SHA256 Access=", "Basic eDp5", "SDK-HMAC-SHA256 " + "," * 500):
            refused(f"authorization {word[:30]!r}", "GET", target, [*headers, ("Authorization", word)])
        body = b'{"backup_id":"00000000-0000-4000-8000-000000000000"}'
        payload = [*python_style(), ("X-Sdk-Content-Sha256", "UNSIGNED-PAYLOAD")]
        refused("unsigned payload", "POST", target,
                [*payload, ("Authorization", sign("POST", target, payload, body))], body)
        other = [*python_style(), ("X-Sdk-Content-Sha256", hashlib.sha256(b"other").hexdigest())]
        refused("the hash of another payload", "POST", target,
                [*other, ("Authorization", sign("POST", target, other, body))], body)
        content = refused("no credential at all", "GET", target, [("Host", place.netloc)])
        checks.that("the gateway's body has a request id", b'"request_id"' in content, content)

    with checks.part("another project"):
        foreign = "0" * 32
        headers = [("Host", place.netloc), ("X-Sdk-Date", stamp(utc_now()))]
        target = f"/v2/{foreign}/instances"
        status, code, _ = send("GET", target, [*headers, ("Authorization", sign("GET", target, headers))])
        checks.same("in the path", (status, code), (401, "DCS.1004"))
        headers.append(("X-Project-Id", foreign))
        target = f"/v2/{api.project}/instances"
        status, code, _ = send("GET", target, [*headers, ("Authorization", sign("GET", target, headers))])
        checks.same("in the header", (status, code), (401, "DCS.1004"))


def main():
    with instance(api, "signed") as instance_id:
        path = f"/v2/{api.project}/instances/{instance_id}"
        test_accepted(path)
        test_every_byte(path)
        test_refused(path)
    checks.finish()


main()
