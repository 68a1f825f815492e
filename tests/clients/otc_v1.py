"""openstacksdk with otcextensions (API v1.0, token), set up in each of the three ways that its users have."""
import re

import openstack
from openstack import exceptions
from otcextensions import sdk

from harness import ISO_TIME, Api, Checks, connect, instance, wait_until

UNKNOWN = "00000000-0000-4000-8000-000000000000"

checks = Checks()
api = Api()
values = api.admin


def common():
    return {
        "load_envvars": False, "load_yaml_config": False, "verify": False, "region_name": values["region"],
    }


def with_bare_token():
    """No identity service: the caller has a token and knows where DCS is."""
    connection = openstack.connect(
        **common(), auth_type="admin_token", auth={"token": api.token, "endpoint": api.endpoint},
        dcs_endpoint_override=f"{api.endpoint}/v1.0/{api.project}")
    sdk.register_single_service(connection, "dcs", project_id=api.project)
    return connection


def with_password(**more):
    """The identity service gives the token, and unless overridden its catalogue says where DCS is."""
    connection = openstack.connect(
        **common(), **more,
        auth={
            "auth_url": f"{api.endpoint}/v3", "username": values["user"], "password": values["password"],
            "user_domain_name": values["domain"], "project_name": values["project"],
            "project_domain_name": values["domain"],
        })
    sdk.register_otc_extensions(connection)
    return connection


def with_password_and_override():
    return with_password(dcs_endpoint_override=f"{api.endpoint}/v1.0/%(project_id)s")


def wait(records, wanted, pending):
    def look():
        found = [record for record in records() if record.id == wanted]
        checks.that("a record is listed from the moment it was answered", len(found) == 1, found)
        return found[0]

    return wait_until(wanted, look, lambda record: record.status not in pending)


def test_connection(name, make, instance_id):
    with checks.part(f"{name}: back up, restore, list, delete"):
        dcs = make().dcs
        shown = dcs.get_instance(instance_id)
        checks.same("the instance", (shown.id, shown.status), (instance_id, "RUNNING"))
        checks.that("it is among all", instance_id in [found.id for found in dcs.instances()])
        found = dcs.find_instance("otc-client", ignore_missing=False)
        checks.same("it is found by its name", found.id, instance_id)

        data = connect(api.show(instance_id))
        data.set("kept", name)
        made = dcs.backup_instance(instance=instance_id, description=f"otc {name}")
        backup = wait(lambda: dcs.backups(instance_id, start=1, limit=100), made.id, ("waiting", "backuping"))
        checks.same("backup", (backup.status, backup.error_code, backup.progress), ("succeed", None, "100.00"))
        data.set("kept", "damaged")
        started = dcs.restore_instance(instance=instance_id, backup_id=made.id, description=f"otc {name}")
        record = wait(lambda: dcs.restore_records(instance_id, start=1, limit=100), started.id,
                      ("waiting", "restoring"))
        checks.same("restore", (record.status, record.error_code, record.backup_id), ("succeed", None, made.id))
        checks.same("the data is back", connect(api.show(instance_id)).get("kept"), name.encode())
        empty = list(dcs.restore_records(instance_id, begin_time="20990101000000", end_time="20990101000001"))
        checks.same("an empty window is an empty list", empty, [])
        dcs.delete_instance_backup(instance=instance_id, backup=made.id, ignore_missing=False)
        left = [record.id for record in dcs.backups(instance_id, limit=100)]
        checks.that("the deleted backup is not listed", made.id not in left, left)
        dcs.delete_instance_backup(instance=instance_id, backup=made.id, ignore_missing=True)
        try:
            dcs.delete_instance_backup(instance=instance_id, backup=made.id, ignore_missing=False)
            checks.that("a second delete says that there is none", False)
        except exceptions.NotFoundException as failure:
            checks.same("a second delete says that there is none", failure.status_code, 404)


def test_paging(instance_id):
    with checks.part("pages count from 1"):
        dcs = with_password().dcs
        everything = [record.id for record in dcs.restore_records(instance_id, start=1, limit=100)]
        checks.same("one record for each way to connect", len(everything), 3)
        for start in range(1, 5):
            page = [record.id for record in dcs.restore_records(instance_id, start=start, limit=2)]
            checks.same(f"start {start} limit 2", page, everything[start - 1:start + 1])


def test_shapes(instance_id):
    def get(path, **query):
        return api.call("GET", path, "v1.0", params=query)

    with checks.part("v1.0 shapes, by plain HTTP"):
        answer = get(f"/instances/{instance_id}/restores", limit=1, start=1).json()
        record = answer["restore_record_response"][0]
        checks.same("restore fields", set(record) - {"ext"}, {
            "restore_id", "restore_name", "backup_id", "backup_name", "backup_remark", "restore_remark", "status",
            "progress", "created_at", "updated_at", "error_code", "sourceInstanceId", "sourceInstanceName"})
        checks.same("source", (record["sourceInstanceId"], record["sourceInstanceName"]), (instance_id, "otc-client"))
        checks.that("times", re.match(ISO_TIME, record["created_at"]) and re.match(ISO_TIME, record["updated_at"]))
        made = api.call("POST", f"/instances/{instance_id}/backups", "v1.0", json={})
        checks.same("a backup with an empty body", made.status_code, 200)
        backup_id = made.json()["backup_id"]
        api.wait_record(instance_id, "backup", backup_id)
        record = get(f"/instances/{instance_id}/backups", limit=1).json()["backup_record_response"][0]
        checks.same("the format is upper case", record["backup_format"], "RDB")
        checks.same("is_support_restore is a string", record["is_support_restore"], "TRUE")
        checks.same("both versions show the same backup",
                    api.records(instance_id, "backup", limit=1)[0]["backup_id"], backup_id)
        for name in ("beginTime", "begin_time", "begin_Time"):
            answer = get(f"/instances/{instance_id}/restores", **{name: "20990101000000"})
            checks.same(f"the name {name} works", (answer.status_code, answer.json()["total_num"]), (200, 0))
        links = api.call("POST", f"/instances/{instance_id}/backups/{backup_id}/links", "v1.0",
                         json={"expiration": "300"})
        checks.same("expiration as a string", links.status_code, 200)
        gone = api.call("DELETE", f"/instances/{instance_id}/backups/{backup_id}", "v1.0")
        checks.same("delete answers 200 and a message", (gone.status_code, gone.json()), (200, {"message": ""}))

    with checks.part("v1.0 errors are nested, with their own codes"):
        one = f"/instances/{instance_id}"
        for claim, answer, status, code in (
            ("limit 0", get(f"{one}/restores", limit=0), 400, "111400800"),
            ("start 0", get(f"{one}/restores", start=0), 400, "111400800"),
            ("limit x", get(f"{one}/backups", limit="x"), 400, "111400800"),
            ("beginTime", get(f"{one}/restores", beginTime="2017"), 400, "111400062"),
            ("unknown instance", get(f"/instances/{UNKNOWN}/restores"), 404, "111404022"),
            ("malformed instance id", get("/instances/otc-client"), 400, "111400061"),
            ("restore of an unknown backup",
             api.call("POST", f"{one}/restores", "v1.0", json={"backup_id": UNKNOWN}), 400, "111400063"),
            ("delete of an unknown backup",
             api.call("DELETE", f"{one}/backups/{UNKNOWN}", "v1.0"), 404, "111404001"),
            ("body that is not JSON",
             api.call("POST", f"{one}/restores", "v1.0", data="{", headers={"Content-Type": "application/json"}),
             400, "111400005"),
            ("empty body", api.call("POST", f"{one}/restores", "v1.0"), 400, "111400004"),
            ("wrong method", api.call("PATCH", f"{one}/restores", "v1.0"), 405, "111405001"),
            ("unknown path", get(f"{one}/nothing"), 404, "111404001"),
        ):
            body = answer.json()
            checks.same(claim, (answer.status_code, body.get("error", {}).get("code")), (status, code))
            checks.that(f"{claim}: has a message", body.get("error", {}).get("message"), body)
        try:
            with_password().dcs.backup_instance(instance=UNKNOWN, description="x")
            checks.that("the client raises", False)
        except exceptions.HttpException as failure:
            checks.same("the client shows status", failure.status_code, 404)


def test_marker():
    with checks.part("the client pages instances by marker"):
        with instance(api, "otc-other"):
            dcs = with_password().dcs
            every = [found.id for found in dcs.instances(limit=1)]
            checks.same("each instance once", len(every), len(set(every)))
            checks.that("both are there", len(every) >= 2, every)


def main():
    with instance(api, "otc-client") as instance_id:
        test_connection("bare token", with_bare_token, instance_id)
        test_connection("password", with_password, instance_id)
        test_connection("password and override", with_password_and_override, instance_id)
        test_paging(instance_id)
        test_shapes(instance_id)
        test_marker()
    checks.finish()


main()
