"""/openapi.json against the service itself: it is complete, resolves, and every real answer is what it says."""
import re

import jsonschema

from harness import Api, Checks, connect, instance

UNKNOWN = "00000000-0000-4000-8000-000000000000"
METHODS = ("get", "put", "post", "delete", "patch", "head")

checks = Checks()
api = Api()


def get_document():
    # Without a credential: a client needs it before it has one.
    answer = api.session.get(f"{api.endpoint}/openapi.json", headers={"X-Auth-Token": None}, timeout=30)
    checks.same("it is served to anybody", answer.status_code, 200)
    checks.that("as JSON", answer.headers["Content-Type"].startswith("application/json"))
    return answer.json()


def references(node, place="#"):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield place, node["$ref"]
        for name, value in node.items():
            yield from references(value, f"{place}/{name}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from references(value, f"{place}/{number}")


def resolve(document, reference):
    node = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def operations(document):
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def test_document(document):
    with checks.part("the document itself"):
        checks.that("version", document["openapi"].startswith("3.1"), document.get("openapi"))
        for place, reference in references(document):
            try:
                checks.that(f"{place}: {reference}", reference.startswith("#/") and resolve(document, reference))
            except (KeyError, TypeError):
                checks.that(f"{place}: {reference} resolves", False)
        names = [operation["operationId"] for _, _, operation in operations(document)]
        checks.same("operation ids are unique", len(names), len(set(names)))
        for path, method, operation in operations(document):
            claimed = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            checks.same(f"{method} {path}: path parameters", claimed, set(re.findall(r"\{(\w+)\}", path)))
            checks.that(f"{method} {path}: has a success", any(c.startswith("2") for c in operation["responses"]))
        for name, schema in document["components"]["schemas"].items():
            try:
                jsonschema.Draft202012Validator.check_schema(schema)
                checks.that(name, True)
            except jsonschema.SchemaError as failure:
                checks.that(f"schema {name} is valid", False, failure.message)
        for core in ("backups", "backups/{backup_id}", "backups/{backup_id}/links", "restores"):
            for version in ("v2", "v1.0"):
                path = f"/{version}/{{project_id}}/instances/{{instance_id}}/{core}"
                checks.that(f"{path} is in it", path in document["paths"])


def validate(document, claim, operation, answer):
    """The answer's status is a documented one and its body fits; returns whether the body had a schema."""
    documented = operation["responses"].get(str(answer.status_code))
    if not checks.that(f"{claim}: status {answer.status_code} is documented", documented, answer.text[:300]):
        return False
    content = documented.get("content", {})
    if not content:
        return checks.that(f"{claim}: no body", answer.content == b"", answer.text[:300]) and False
    media = answer.headers.get("Content-Type", "").split(";")[0]
    if not checks.that(f"{claim}: media type {media}", media in content, list(content)):
        return False
    schema = content[media].get("schema")
    if schema is None:
        return False
    whole = {**schema, "components": document["components"]}
    failures = list(jsonschema.Draft202012Validator(whole).iter_errors(answer.json()))
    checks.that(f"{claim}: body fits", not failures, [(list(f.path), f.message) for f in failures[:5]])
    return True


class Filled:
    """Real ids for the parameters of a path."""

    def __init__(self, instance_id, backup_id, restore_id):
        self.ids = {
            "project_id": api.project, "project": api.project, "instance_id": instance_id, "instance": instance_id,
            "backup_id": backup_id, "backup": backup_id, "restore_id": restore_id, "restore": restore_id, "schedule_id": UNKNOWN,
        }

    def path(self, path, **other):
        ids = {**self.ids, **other}
        return re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], found[0]), path)


def call(method, path, **more):
    return api.session.request(method, api.endpoint + path, timeout=60, **more)


def test_reads(document, filled):
    with checks.part("every documented GET answers as documented"):
        with_schema = 0
        for path, method, operation in operations(document):
            real = filled.path(path)
            if method != "get" or "{" in real:
                continue
            answer = call("GET", real)
            with_schema += validate(document, f"GET {path}", operation, answer)
        checks.that("most had a schema to fit", with_schema >= 10, with_schema)


def test_refusals(document, filled):
    with checks.part("documented errors, for every operation"):
        for path, method, operation in operations(document):
            if "{project_id}" not in path:
                continue
            claim = f"{method} {path}"
            malformed = {"instance_id": "no-uuid", "backup_id": "no-uuid", "restore_id": "no-uuid"}
            unknown = {"instance_id": UNKNOWN, "backup_id": UNKNOWN, "restore_id": UNKNOWN}
            if "{instance_id}" in path:
                body = {"json": {"backup_id": UNKNOWN, "expiration": 300, "name": "renamed-1", "url": "https://example.invalid/dump.rdb", "new_password": "Abcdef-12", "new_capacity": 0.25, "cron": "0 2 * * *", "reason": "case 1234", "objective_minutes": 360}}
                more = body if method in ("post", "put") else {}
                answer = call(method, filled.path(path, **malformed), **more)
                checks.same(f"{claim}: malformed instance", answer.status_code, 400)
                validate(document, f"{claim}: malformed instance", operation, answer)
                answer = call(method, filled.path(path, **unknown), **more)
                checks.same(f"{claim}: unknown instance", answer.status_code, 404)
                validate(document, f"{claim}: unknown instance", operation, answer)
            if "requestBody" in operation:
                answer = call(method, filled.path(path), data=b"{]", headers={"Content-Type": "application/json"})
                checks.same(f"{claim}: not JSON", answer.status_code, 400)
                validate(document, f"{claim}: not JSON", operation, answer)
            answer = call(method, filled.path(path), headers={"X-Auth-Token": None})
            checks.same(f"{claim}: no credential", answer.status_code, 401)
            validate(document, f"{claim}: no credential", operation, answer)
            answer = call(method, filled.path(path, project_id="0" * 32))
            checks.same(f"{claim}: foreign project", answer.status_code, 401)
            validate(document, f"{claim}: foreign project", operation, answer)


def test_writes(document, filled):
    """The calls that change something, in an order in which each succeeds."""
    with checks.part("writes answer as documented"):
        def run(method, path, version="v2", **more):
            template = f"/{version}/{{project_id}}{path}"
            answer = call(method, filled.path(template), **more)
            operation = document["paths"][template][method]
            checks.that(f"{method} {template} succeeds", answer.status_code < 300, answer.text[:300])
            validate(document, f"{method} {template}", operation, answer)
            return answer

        one = "/instances/{instance_id}"
        for version in ("v2", "v1.0"):
            made = run("post", f"{one}/backups", version).json()["backup_id"]
            api.wait_record(filled.ids["instance_id"], "backup", made)
            filled.ids["backup_id"] = made
            run("post", f"{one}/backups/{{backup_id}}/links", version, json={"expiration": 300})
            started = run("post", f"{one}/restores", version, json={"backup_id": made}).json()["restore_id"]
            api.wait_record(filled.ids["instance_id"], "restore", started)
            run("delete", f"{one}/backups/{{backup_id}}", version)
            run("put", one, version, json={"description": "changed"})
            status = {"instances": [filled.ids["instance_id"]], "action": "restart"}
            run("put", "/instances/status", version, json=status)
            api.wait_running(filled.ids["instance_id"])
            run("post", f"{one}/password/reset", version, json={"new_password": "Client-test-1"})
            api.wait_running(filled.ids["instance_id"])
            made = run("post", "/instances", version, json=api.create_body("openapi-short"))
            short = made.json()["instances"][0]["instance_id"]
            api.wait_running(short)
            run("delete", "/instances", version, json={"instances": [short]})


def main():
    document = get_document()
    test_document(document)
    with instance(api, "openapi-client") as instance_id:
        connect(api.show(instance_id)).set("key", "value")
        backup = api.backup(instance_id, remark="one")
        restore = api.restore(instance_id, backup["backup_id"], remark="two")
        api.wait_running(instance_id)
        filled = Filled(instance_id, backup["backup_id"], restore["restore_id"])
        test_reads(document, filled)
        test_refusals(document, filled)
        test_writes(document, filled)
    checks.finish()


main()
