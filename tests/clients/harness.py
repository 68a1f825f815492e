"""What the client tests share: where the service is, counting of claims, waiting, and an instance to work on.

Each test is a program. It finds the service through the file named by CACHEKEEP_ADMIN (or its first argument; without
either, the default data folder), makes its own instances, deletes them, and exits with 0 only if every claim held.
"""
import contextlib
import json
import os
import pathlib
import sys
import time
import traceback

import redis
import requests
import urllib3

urllib3.disable_warnings()

ZONE = "az1"
PASSWORD = "Client-test-1"
ISO_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


def admin():
    """The admin file of the service under test."""
    default = pathlib.Path.home() / ".local/share/cachekeep/admin.json"
    path = os.environ.get("CACHEKEEP_ADMIN") or (sys.argv[1] if len(sys.argv) > 1 else default)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


class Checks:
    """Counts claims that held and claims that did not; prints only the latter."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def that(self, claim, holds, seen=None):
        if holds:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {claim}" + ("" if seen is None else f"\n        seen: {str(seen)[:2000]}"), flush=True)
        return bool(holds)

    def same(self, claim, seen, wanted):
        return self.that(claim, seen == wanted, f"{seen!r}, wanted {wanted!r}")

    @contextlib.contextmanager
    def part(self, name):
        """A part of the test: an exception in it is one failed claim, and the next part goes on."""
        print(f"- {name}", flush=True)
        try:
            yield
        except Exception:  # noqa: BLE001 - whatever a client raises is a finding
            self.failed += 1
            print(f"FAILED: {name}\n{traceback.format_exc()}", flush=True)

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(0 if self.failed == 0 and self.passed > 0 else 1)


def wait_until(what, fetch, done, timeout=120.0, every=0.02):
    """Calls fetch() until done(its result); the last result is in the error."""
    deadline = time.monotonic() + timeout
    while True:
        seen = fetch()
        if done(seen):
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: still {seen!r} after {timeout} s")
        time.sleep(every)


class Api:
    """The service by plain HTTP with a token: sets the stage, and looks where no client does."""

    def __init__(self, values=None):
        self.admin = values or admin()
        self.endpoint = self.admin["endpoint"].rstrip("/")
        self.project = self.admin["project_id"]
        self.session = requests.Session()
        self.session.verify = False
        self.session.trust_env = False
        self.token = self.login()
        self.session.headers["X-Auth-Token"] = self.token

    def login(self):
        user = {
            "name": self.admin["user"],
            "password": self.admin["password"],
            "domain": {"name": self.admin["domain"]},
        }
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"id": self.project}},
            }
        }
        answer = self.session.post(f"{self.endpoint}/v3/auth/tokens", json=body, timeout=30)
        assert answer.status_code == 201, (answer.status_code, answer.text)
        return answer.headers["X-Subject-Token"]

    def url(self, path, version="v2"):
        return f"{self.endpoint}/{version}/{self.project}{path}"

    def call(self, method, path, version="v2", **more):
        return self.session.request(method, self.url(path, version), timeout=60, **more)

    def create_body(self, name, **more):
        flavor = self.smallest_flavor()
        body = {
            "name": name,
            "engine": "Redis",
            "engine_version": "7.0",
            "capacity": float(flavor["capacity"][0]),
            "spec_code": flavor["spec_code"],
            "az_codes": [ZONE],
            "vpc_id": "vpc",
            "subnet_id": "subnet",
            "password": PASSWORD,
        }
        body.update(more)
        return body

    def smallest_flavor(self):
        answer = self.call("GET", "/flavors")
        assert answer.status_code == 200, answer.text
        return min(answer.json()["flavors"], key=lambda flavor: float(flavor["capacity"][0]))

    def create_instance(self, name, **more):
        """Makes an instance and waits until it runs; returns its id."""
        answer = self.call("POST", "/instances", json=self.create_body(name, **more))
        assert answer.status_code == 200, answer.text
        instance_id = answer.json()["instances"][0]["instance_id"]
        self.wait_running(instance_id)
        return instance_id

    def show(self, instance_id):
        answer = self.call("GET", f"/instances/{instance_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_running(self, instance_id):
        return wait_until(
            f"instance {instance_id} RUNNING",
            lambda: self.show(instance_id),
            lambda seen: seen["status"] == "RUNNING" and seen["task"] is None,
        )

    def backup(self, instance_id, **body):
        answer = self.call("POST", f"/instances/{instance_id}/backups", json=body)
        assert answer.status_code == 200, answer.text
        backup_id = answer.json()["backup_id"]
        return self.wait_record(instance_id, "backup", backup_id)

    def restore(self, instance_id, backup_id, **body):
        answer = self.call("POST", f"/instances/{instance_id}/restores", json={"backup_id": backup_id, **body})
        assert answer.status_code == 200, answer.text
        restore_id = answer.json()["restore_id"]
        return self.wait_record(instance_id, "restore", restore_id)

    def records(self, instance_id, kind, **query):
        answer = self.call("GET", f"/instances/{instance_id}/{kind}s", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()[f"{kind}_record_response"]

    def wait_record(self, instance_id, kind, record_id):
        def fetch():
            found = [r for r in self.records(instance_id, kind, limit=1000) if r[f"{kind}_id"] == record_id]
            return found[0] if found else None

        return wait_until(f"{kind} {record_id}", fetch, lambda r: r and r["status"] in ("succeed", "failed"))

    def delete_instance(self, instance_id):
        """Deletes an instance when it is idle, and waits until it is unknown."""

        def delete():
            answer = self.call("DELETE", f"/instances/{instance_id}")
            return answer.status_code

        wait_until("delete accepted", delete, lambda status: status in (204, 404))
        path = f"/instances/{instance_id}"
        wait_until("instance gone", lambda: self.call("GET", path).status_code, lambda status: status == 404)


def connect(shown, db=0, password=PASSWORD):
    """A client of the instance's data, from the fields of ShowInstance."""
    return redis.Redis(
        host=shown["ip"], port=shown["port"], db=db, password=password, socket_timeout=10, single_connection_client=False
    )


def engine_state(client):
    """Everything in one database, in a form that compares: each key's value and expiry time."""
    return {key: (value_of(client, key), client.pexpiretime(key)) for key in client.scan_iter(count=1000)}


def value_of(client, key):
    kind = client.type(key)
    if kind == b"string":
        return client.get(key)
    if kind == b"hash":
        return client.hgetall(key)
    if kind == b"list":
        return client.lrange(key, 0, -1)
    if kind == b"set":
        return client.smembers(key)
    if kind == b"zset":
        return client.zrange(key, 0, -1, withscores=True)
    if kind == b"stream":
        return client.xrange(key), client.xinfo_groups(key)
    raise AssertionError(f"{key!r} is of type {kind!r}")


@contextlib.contextmanager
def instance(api, name, **more):
    """An instance that is deleted at the end, whatever happened."""
    instance_id = api.create_instance(name, **more)
    try:
        yield instance_id
    finally:
        with contextlib.suppress(Exception):
            api.delete_instance(instance_id)
