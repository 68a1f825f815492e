"""The official SDK (API v2, AK/SK): the life of an instance, its backups, restores and their records."""
import datetime
import hashlib
import json
import re
import subprocess
import tempfile
import threading

import redis
import requests
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkcore.region.region import Region
from huaweicloudsdkdcs import v2

from harness import ISO_TIME, PASSWORD, UUID, ZONE, Checks, admin, connect, engine_state, wait_until

RESTORE_FIELDS = {
    "restore_id", "restore_name", "backup_id", "backup_name", "backup_remark", "restore_remark", "status", "progress",
    "created_at", "updated_at", "error_code",
}
BACKUP_FIELDS = {
    "backup_id", "backup_name", "instance_id", "backup_type", "backup_format", "status", "progress", "size", "period",
    "remark", "created_at", "execution_at", "updated_at", "error_code", "is_support_restore",
}
UNKNOWN = "00000000-0000-4000-8000-000000000000"

checks = Checks()
values = admin()


def make_client(project_id=values["project_id"], region=None):
    config = HttpConfig.get_default_config()
    config.ignore_ssl_verification = True
    config.timeout = (5, 60)
    builder = v2.DcsClient.new_builder().with_http_config(config)
    if region is None:
        credentials = BasicCredentials(values["ak"], values["sk"], project_id)
        return builder.with_credentials(credentials).with_endpoint(values["endpoint"]).build()
    # No project id: the SDK asks the identity service for the project that is named as the region.
    credentials = BasicCredentials(values["ak"], values["sk"]).with_iam_endpoint(values["endpoint"])
    return builder.with_credentials(credentials).with_region(Region(region, values["endpoint"])).build()


client = make_client()


def refused(claim, call, status, code):
    """The call raises the SDK's own exception with this status and code, and names its request."""
    try:
        answer = call()
    except ClientRequestException as failure:
        checks.same(claim, (failure.status_code, failure.error_code), (status, code))
        checks.that(f"{claim}: has a message and a request id", failure.error_msg and failure.request_id, failure)
    else:
        checks.that(f"{claim}: refused", False, answer)


def create_body(name, flavor, **more):
    capacity = float(flavor.capacity[0])
    settings = {
        "name": name, "engine": "Redis", "engine_version": "7.0", "capacity": capacity, "spec_code": flavor.spec_code,
        "az_codes": [ZONE], "vpc_id": "vpc", "subnet_id": "subnet", "password": PASSWORD,
    }
    settings.update(more)
    return v2.CreateInstanceBody(**settings)


def create(name, flavor, **more):
    made = client.create_instance(v2.CreateInstanceRequest(body=create_body(name, flavor, **more)))
    instance_id = made.instances[0].instance_id
    checks.that("a new instance has a UUID", re.match(UUID, instance_id), instance_id)
    return instance_id


def show(instance_id):
    return client.show_instance(v2.ShowInstanceRequest(instance_id=instance_id))


def wait_running(instance_id):
    # This version of the SDK leaves out the field "task", which says whether the instance is idle.
    return wait_until("RUNNING", lambda: show(instance_id),
                      lambda seen: seen.status == "RUNNING" and raw(seen)["task"] is None)


def backups(instance_id, **query):
    return client.list_backup_records(v2.ListBackupRecordsRequest(instance_id, **query))


def restores(instance_id, **query):
    return client.list_restore_records(v2.ListRestoreRecordsRequest(instance_id, **query))


def start_backup(instance_id, **body):
    body = v2.BackupInstanceBody(**body) if body else None
    return client.copy_instance(v2.CopyInstanceRequest(instance_id=instance_id, body=body)).backup_id


def start_restore(instance_id, backup_id, remark=None):
    body = v2.RestoreInstanceBody(backup_id=backup_id, remark=remark)
    return client.restore_instance(v2.RestoreInstanceRequest(instance_id=instance_id, body=body)).restore_id


def wait_backup(instance_id, backup_id):
    return wait_record(lambda: backups(instance_id, limit=1000).backup_record_response, "backup_id", backup_id,
                       {"waiting", "backuping"})


def wait_restore(instance_id, restore_id):
    return wait_record(lambda: restores(instance_id, limit=1000).restore_record_response, "restore_id", restore_id,
                       {"waiting", "restoring"})


def wait_record(fetch, field, wanted, pending):
    """Polls as Terraform does: absence or a status that is neither pending nor final is a finding."""
    progress = []

    def look():
        found = [record for record in fetch() if getattr(record, field) == wanted]
        checks.that(f"{field} {wanted} is listed from the moment it was answered", len(found) == 1, found)
        record = found[0]
        progress.append(float(record.progress))
        checks.that("status is one of the documented ones", record.status in pending | {"succeed", "failed"}, record)
        return record

    record = wait_until(field, look, lambda seen: seen.status not in pending)
    checks.that("progress never goes back", progress == sorted(progress), progress)
    return record


def raw(response):
    """The bytes of the answer: the SDK hides what is null and what is missing."""
    return json.loads(response.raw_content)


def test_instances(instance_id):
    with checks.part("instances: create, list, show, update"):
        seen = wait_running(instance_id)
        checks.same("name", seen.name, "sdk-first")
        checks.same("engine", (seen.engine, seen.engine_version), ("Redis", "7.0"))
        checks.same("password is asked for", seen.no_password_access, "false")
        checks.that("it answers on the shown port", connect(vars_of(seen)).ping())
        listed = client.list_instances(v2.ListInstancesRequest(name="sdk-first"))
        checks.same("it is listed", [i.instance_id for i in listed.instances], [instance_id])
        checks.same("and counted", listed.instance_num, 1)
        policy = v2.BackupPolicy(
            backup_type="auto", save_days=3,
            periodical_backup_plan=v2.BackupPlan(backup_at=[1, 3], period_type="weekly", begin_at="02:00-04:00"))
        body = v2.ModifyInstanceBody(name="sdk-renamed", description="changed", instance_backup_policy=policy)
        changed = client.update_instance(v2.UpdateInstanceRequest(instance_id=instance_id, body=body))
        checks.same("update answers 204", changed.status_code, 204)
        seen = wait_running(instance_id)
        checks.same("the new name", (seen.name, seen.description), ("sdk-renamed", "changed"))
        kept = seen.instance_backup_policy.policy
        checks.same("the policy", (kept.backup_type, kept.save_days, kept.periodical_backup_plan.backup_at),
                    ("auto", 3, [1, 3]))


def vars_of(seen):
    return {"ip": seen.ip, "port": seen.port}


def fill(instance_id):
    """Some of each type in two databases; returns what is there."""
    shown = vars_of(show(instance_id))
    one, two = connect(shown), connect(shown, db=3)
    with one.pipeline(transaction=False) as pipe:
        for number in range(2000):
            pipe.set(f"text:{number}", f"value {number} ".encode() * (number % 40))
        pipe.set("büro:ключ", "\x00\xff binary")
        pipe.set("far", "x", pxat=4_102_444_800_000)
        pipe.hset("hash", mapping={f"field{number}": number for number in range(500)})
        pipe.rpush("list", *range(1000))
        pipe.sadd("set", *range(1000))
        pipe.zadd("sorted", {"low": float("-inf"), "high": float("inf"), "some": -1.5})
        pipe.xadd("stream", {"a": "b"}, id="5-1")
        pipe.xgroup_create("stream", "group", id="0")
        pipe.execute()
    two.mset({f"other:{number}": number for number in range(500)})
    return state(shown)


def state(shown):
    return {db: engine_state(connect(shown, db=db)) for db in (0, 3)}


def damage(instance_id):
    shown = vars_of(show(instance_id))
    one = connect(shown)
    one.delete(*[f"text:{number}" for number in range(0, 2000, 3)], "hash", "far")
    one.set("list", "not a list")
    one.set("garbage", "was not there")
    connect(shown, db=3).flushdb()


def check_backup_record(record, instance_id, backup_id):
    checks.same("backup fields", set(record) - {"ext"}, BACKUP_FIELDS)
    checks.same("backup ids", (record["backup_id"], record["instance_id"]), (backup_id, instance_id))
    checks.same("backup type and format", (record["backup_type"], record["backup_format"]), ("manual", "rdb"))
    checks.same("backup progress is a string", record["progress"], "100.00")
    checks.that("backup size is a number", isinstance(record["size"], int) and record["size"] > 0, record["size"])
    checks.same("manual: no period", record["period"], None)
    checks.same("no error", record["error_code"], None)
    checks.same("is_support_restore is an upper-case string", record["is_support_restore"], "TRUE")
    checks.that("backup name", re.match(r"^backup_\d{14}(_\d+)?$", record["backup_name"]), record["backup_name"])
    check_times(record, "created_at", "execution_at", "updated_at")


def check_times(record, *fields):
    times = [record[field] for field in fields]
    checks.that(f"{fields} are ISO times with milliseconds", all(re.match(ISO_TIME, t) for t in times), times)
    checks.that(f"{fields} are in this order", times == sorted(times), times)


def check_links(instance_id, backup_id):
    for bad in (299, 86401):
        refused(f"link for {bad} s", lambda bad=bad: links(instance_id, backup_id, bad), 400, "DCS.4063")
    links(instance_id, backup_id, 86400)
    answer = links(instance_id, backup_id, 300)
    link = answer.links[0]
    checks.that("the file's name ends in .rdb", link.file_name.endswith(".rdb"), link.file_name)
    whole = requests.get(link.link, timeout=60, verify=False)
    checks.same("the link works without credentials", whole.status_code, 200)
    checks.same("its length is announced", int(whole.headers["Content-Length"]), len(whole.content))
    with tempfile.NamedTemporaryFile(suffix=".rdb") as file:
        file.write(whole.content)
        file.flush()
        verdict = subprocess.run(["redis-check-rdb", file.name], capture_output=True, text=True, check=False)
        checks.that("redis-check-rdb accepts the file", verdict.returncode == 0 and "RDB looks OK" in verdict.stdout,
                    verdict.stdout[-500:])
    part = requests.get(link.link, headers={"Range": "bytes=9-108"}, timeout=60, verify=False)
    checks.same("a range of it", (part.status_code, part.content), (206, whole.content[9:109]))
    changed = link.link.replace("Expires=", "Expires=9") if "Expires=" in link.link else link.link[:-1] + "0"
    dead = requests.get(changed, timeout=60, verify=False)
    checks.that("a changed expiry is refused", dead.status_code in (401, 403, 404), dead.status_code)
    return hashlib.sha256(whole.content).hexdigest()


def links(instance_id, backup_id, expiration):
    return client.list_backup_file_links(v2.ListBackupFileLinksRequest(
        instance_id=instance_id, backup_id=backup_id, body=v2.DownloadBackupFilesReq(expiration=expiration)))


def test_round_trip(instance_id):
    with checks.part("backup, download, damage, restore"):
        before = fill(instance_id)
        remark = "vor dem Umbau \"x\" 备份 🙂"
        backup_id = start_backup(instance_id, remark=remark, backup_format="rdb")
        record = wait_backup(instance_id, backup_id)
        checks.same("backup succeeds", record.status, "succeed")
        listed = raw(backups(instance_id, limit=10, offset=0))
        check_backup_record(listed["backup_record_response"][0], instance_id, backup_id)
        checks.same("the remark comes back unchanged", listed["backup_record_response"][0]["remark"], remark)
        check_links(instance_id, backup_id)

        damage(instance_id)
        checks.that("the damage shows", state(vars_of(show(instance_id))) != before)
        restore_id = start_restore(instance_id, backup_id, "zurück")
        record = wait_restore(instance_id, restore_id)
        checks.same("restore succeeds", (record.status, record.error_code), ("succeed", None))
        checks.same("the instance runs no later than the record says so", show(instance_id).status, "RUNNING")
        after = state(vars_of(show(instance_id)))
        checks.that("all keys, values and expiry times are as they were", after == before,
                    {db: sorted(set(after[db]) ^ set(before[db]))[:5] for db in before})

        listed = raw(restores(instance_id, limit=10, offset=0))
        checks.same("total_num", listed["total_num"], 1)
        record = listed["restore_record_response"][0]
        checks.same("restore fields", set(record) - {"ext"}, RESTORE_FIELDS)
        checks.same("restore ids", (record["restore_id"], record["backup_id"]), (restore_id, backup_id))
        checks.same("remarks", (record["backup_remark"], record["restore_remark"]), (remark, "zurück"))
        checks.same("restore progress", record["progress"], "100.00")
        checks.same("no error", record["error_code"], None)
        checks.that("restore name", re.match(r"^restore_\d{14}(_\d+)?$", record["restore_name"]), record)
        check_times(record, "created_at", "updated_at")
        return backup_id
    return None


def test_nulls(instance_id):
    with checks.part("fields without a value are null"):
        backup_id = start_backup(instance_id)
        wait_backup(instance_id, backup_id)
        record = raw(backups(instance_id, limit=1))["backup_record_response"][0]
        checks.same("null fields of a backup", (record["remark"], record["period"], record["error_code"]),
                    (None, None, None))
        wait_restore(instance_id, start_restore(instance_id, backup_id))
        record = raw(restores(instance_id, limit=1))["restore_record_response"][0]
        checks.same("null fields of a restore",
                    (record["backup_remark"], record["restore_remark"], record["error_code"]), (None, None, None))
        return backup_id
    return None


def test_paging(instance_id, backup_id):
    with checks.part("pages and windows of the restore records"):
        for number in range(4):
            wait_restore(instance_id, start_restore(instance_id, backup_id, f"number {number}"))
        everything = restores(instance_id, limit=1000).restore_record_response
        ids = [record.restore_id for record in everything]
        times = [record.created_at for record in everything]
        checks.that("six records", len(ids) == 6, ids)
        checks.same("newest first", times, sorted(times, reverse=True))
        for limit in (1, 2, 5, 6, 7):
            for offset in range(8):
                page = restores(instance_id, limit=limit, offset=offset)
                seen = [record.restore_id for record in page.restore_record_response]
                checks.same(f"limit {limit} offset {offset}", (seen, page.total_num),
                            (ids[offset:offset + limit], len(ids)))
        checks.same("default page", len(restores(instance_id).restore_record_response), 6)

        def stamp(text, seconds=0):
            moment = datetime.datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")
            return (moment + datetime.timedelta(seconds=seconds)).strftime("%Y%m%d%H%M%S")

        for first in range(6):
            for last in range(first, 6):
                begin, end = stamp(times[last]), stamp(times[first])
                wanted = [i for i, t in zip(ids, times) if begin <= stamp(t) <= end]
                page = restores(instance_id, begin_time=begin, end_time=end, limit=1000)
                seen = [record.restore_id for record in page.restore_record_response]
                checks.same(f"window {begin} to {end}, bounds included", (seen, page.total_num),
                            (wanted, len(wanted)))
        after = restores(instance_id, begin_time=stamp(times[0], 1))
        checks.same("an empty window", (after.restore_record_response, after.total_num), ([], 0))
        future = restores(instance_id, begin_time="20990101000000", end_time="20990101000001", limit=10, offset=0)
        checks.same("a window in the future", (raw(future)["restore_record_response"], future.total_num), ([], 0))
        before = restores(instance_id, end_time=stamp(times[-1], -1))
        checks.same("a window before the first", before.total_num, 0)


def test_refusals(instance_id, backup_id, flavor):
    with checks.part("refusals and their codes"):
        for limit in (0, 1001, -1):
            refused(f"limit {limit}", lambda limit=limit: restores(instance_id, limit=limit), 400, "DCS.4800")
            refused(f"backups, limit {limit}", lambda limit=limit: backups(instance_id, limit=limit), 400, "DCS.4800")
        refused("limit x", lambda: restores(instance_id, limit="x"), 400, "DCS.4800")
        refused("offset -1", lambda: restores(instance_id, offset=-1), 400, "DCS.4800")
        for time in ("2017", "20170230000000", "2017-01-01", "99999999999999"):
            refused(f"begin_time {time}", lambda time=time: restores(instance_id, begin_time=time), 400, "DCS.4062")
        refused("a window that ends before it begins",
                lambda: restores(instance_id, begin_time="20260102000000", end_time="20260101000000"), 400, "DCS.4025")
        refused("restore of an unknown backup", lambda: start_restore(instance_id, UNKNOWN), 400, "DCS.4031")
        refused("restore without a backup", lambda: start_restore(instance_id, None), 400, "DCS.4063")
        refused("delete of an unknown backup", lambda: delete_backup(instance_id, UNKNOWN), 400, "DCS.4031")
        refused("links of an unknown backup", lambda: links(instance_id, UNKNOWN, 300), 400, "DCS.4031")
        refused("unknown instance", lambda: restores(UNKNOWN), 404, "DCS.3022")
        refused("malformed instance id", lambda: restores("no-uuid"), 400, "DCS.4061")
        refused("backup of an unknown instance", lambda: start_backup(UNKNOWN), 404, "DCS.3022")
        refused("format", lambda: start_backup(instance_id, backup_format="tar"), 400, "DCS.4063")
        refused("remark of 129 characters", lambda: start_backup(instance_id, remark="x" * 129), 400, "DCS.4098")
        refused("restore remark of 129 characters",
                lambda: start_restore(instance_id, backup_id, "ü" * 129), 400, "DCS.4098")
        for body, code in (
            (create_body("1st", flavor), "DCS.4010"),
            (create_body("good-name", flavor, password="weak"), "DCS.4019"),
            (create_body("good-name", flavor, engine="Memcached"), "DCS.4007"),
            (create_body("good-name", flavor, spec_code="no.such"), "DCS.4009"),
        ):
            refused(f"create, {code}", lambda body=body: client.create_instance(v2.CreateInstanceRequest(body=body)),
                    400, code)
        # Without a project id the SDK leaves the placeholder in the URL.
        placeholder = make_client(project_id=None)
        refused("a project id that was never filled in",
                lambda: placeholder.list_instances(v2.ListInstancesRequest()), 400, "DCS.4002")
        count = restores(instance_id).total_num
        checks.same("refused calls leave no record", count, 6)

    with checks.part("a remark of 128 characters"):
        remark = "€" * 128
        wait_backup(instance_id, start_backup(instance_id, remark=remark))
        checks.same("comes back", backups(instance_id, limit=1).backup_record_response[0].remark, remark)


def delete_backup(instance_id, backup_id):
    return client.delete_backup_file(v2.DeleteBackupFileRequest(backup_id=backup_id, instance_id=instance_id))


def test_exclusion(instance_id, backup_id):
    with checks.part("of two simultaneous calls exactly one wins"):
        for name, start, code in (
            ("backup", lambda: start_backup(instance_id), "DCS.4096"),
            ("restore", lambda: start_restore(instance_id, backup_id), "DCS.4097"),
        ):
            counted = {"backup": lambda: backups(instance_id).total_num, "restore": lambda: restores(instance_id).total_num}
            before = counted[name]()
            outcomes = []
            barrier = threading.Barrier(2)

            def call(start=start, outcomes=outcomes, barrier=barrier):
                barrier.wait()
                try:
                    outcomes.append(start())
                except ClientRequestException as failure:
                    outcomes.append((failure.status_code, failure.error_code))

            threads = [threading.Thread(target=call) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            won = [outcome for outcome in outcomes if isinstance(outcome, str)]
            lost = [outcome for outcome in outcomes if not isinstance(outcome, str)]
            # The first may be done before the second arrives: then both are right to win.
            checks.that(f"two {name}s", len(won) + len(lost) == 2 and lost in ([], [(400, code)]), outcomes)
            for record_id in won:
                (wait_backup if name == "backup" else wait_restore)(instance_id, record_id)
            checks.same(f"one record per accepted {name}", counted[name](), before + len(won))
            wait_running(instance_id)


def test_operations(instance_id):
    with checks.part("restart, flush, password"):
        def act(action):
            body = v2.ChangeInstanceStatusBody(instances=[instance_id], action=action)
            answer = client.restart_or_flush_instances(v2.RestartOrFlushInstancesRequest(body=body))
            checks.same(action, [(r.instance, r.result) for r in answer.results], [(instance_id, "success")])
            return wait_running(instance_id)

        keys = connect(vars_of(show(instance_id))).dbsize()
        seen = act("restart")
        checks.same("a restart loses nothing", connect(vars_of(seen)).dbsize(), keys)
        seen = act("flush")
        checks.same("a flush empties it", connect(vars_of(seen)).dbsize(), 0)
        refused("unknown action", lambda: act("explode"), 400, "DCS.4064")
        body = v2.ResetInstancePasswordBody(new_password="Other-pass-2")
        client.reset_password(v2.ResetPasswordRequest(instance_id=instance_id, body=body))
        seen = wait_running(instance_id)
        checks.that("the new password works", connect(vars_of(seen), password="Other-pass-2").ping())


def test_delete(instance_id, backup_id, flavor):
    with checks.part("delete backups and instances"):
        gone = delete_backup(instance_id, backup_id)
        checks.same("delete answers 204", gone.status_code, 204)
        listed = [record.backup_id for record in backups(instance_id, limit=1000).backup_record_response]
        checks.that("a deleted backup is not listed", backup_id not in listed, listed)
        refused("delete again", lambda: delete_backup(instance_id, backup_id), 400, "DCS.4031")
        refused("restore of a deleted backup", lambda: start_restore(instance_id, backup_id), 400, "DCS.4031")
        kept = restores(instance_id, limit=1000).restore_record_response
        checks.that("the restore records stay", any(record.backup_id == backup_id for record in kept))

        others = [create(f"sdk-batch-{number}", flavor) for number in range(2)]
        for other in others:
            wait_running(other)
        body = v2.BatchDeleteBody(instances=[*others, UNKNOWN])
        answer = client.batch_delete_instances(v2.BatchDeleteInstancesRequest(body=body))
        results = {result.instance: result.result for result in answer.results}
        checks.same("batch delete", results, {others[0]: "success", others[1]: "success", UNKNOWN: "failed"})
        for other in others:
            wait_gone(other)


def test_master_standby(flavors):
    offered = [flavor for flavor in flavors if flavor.cache_mode == "ha"]
    flavor = min(offered, key=lambda offered: (float(offered.capacity[0]), offered.replica_count))
    with checks.part("master and standby: create, nodes, backup, restore, delete"):
        instance_id = create("sdk-ha", flavor)
        seen = wait_running(instance_id)
        checks.same("what it is", (seen.cache_mode, seen.replica_count), ("ha", 2))
        nodes = client.show_nodes_information(v2.ShowNodesInformationRequest(instance_id=instance_id)).nodes
        checks.same("its nodes", sorted(node.node_role for node in nodes), ["master", "slave"])
        groups = client.list_group_replication_info(v2.ListGroupReplicationInfoRequest(instance_id=instance_id))
        roles = [node.replication_role for node in groups.group_list[0].replication_list]
        checks.same("its group", sorted(roles), ["master", "slave"])
        before = fill(instance_id)
        backup_id = start_backup(instance_id)
        checks.same("its backup", wait_backup(instance_id, backup_id).status, "succeed")
        damage(instance_id)
        restore_id = start_restore(instance_id, backup_id)
        checks.same("its restore", wait_restore(instance_id, restore_id).status, "succeed")
        checks.same("what it holds", state(vars_of(wait_running(instance_id))), before)
        client.delete_single_instance(v2.DeleteSingleInstanceRequest(instance_id=instance_id))
        wait_gone(instance_id)


def test_tls(flavors):
    with checks.part("an instance with TLS is made, its certificate is downloaded and trusted, and it gets another size"):
        flavor = next(offered for offered in flavors if offered.spec_code == "redis.single.xu1.tiny.128")
        instance_id = create("sdk-tls", flavor, enable_ssl=True)
        seen = wait_running(instance_id)
        checks.same("it says so", seen.enable_ssl, True)
        detail = client.show_instance_ssl_detail(v2.ShowInstanceSslDetailRequest(instance_id=instance_id))
        checks.same("its detail", (detail.enabled, detail.ip, detail.port), (True, seen.ip, str(seen.port)))
        link = client.download_ssl_cert(v2.DownloadSslCertRequest(instance_id=instance_id))
        certificate = requests.get(link.link, timeout=60, verify=False).text
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(certificate)
            file.flush()
            trusting = redis.Redis(host=seen.ip, port=seen.port, password=PASSWORD, ssl=True, ssl_ca_certs=file.name)
            checks.that("a client that trusts it is answered", trusting.ping())
        in_clear = redis.Redis(host=seen.ip, port=seen.port, password=PASSWORD, socket_timeout=5)
        try:
            checks.that("a client in clear is not", False, in_clear.ping())
        except redis.exceptions.RedisError:
            checks.that("a client in clear is not", True)
        body = v2.ResizeInstanceBody(spec_code="redis.single.xu1.large.1", new_capacity=1)
        client.resize_instance(v2.ResizeInstanceRequest(instance_id=instance_id, body=body))
        seen = wait_running(instance_id)
        checks.same("its size", (seen.capacity, seen.max_memory, seen.spec_code), (1, 1024, "redis.single.xu1.large.1"))
        client.delete_single_instance(v2.DeleteSingleInstanceRequest(instance_id=instance_id))
        wait_gone(instance_id)


def test_other_nodes(flavors):
    with checks.part("replicas are added to a master and standby, and shards to a cluster"):
        for old, change, new, more, seen_as in [
            ("redis.ha.xu1.tiny.r2.128", "createReplication", "redis.ha.xu1.tiny.r3.128", {}, ("ha", 1, 3)),
            (
                "redis.cluster.xu1.large.r1.4",
                "addSharding",
                "redis.cluster.xu1.large.r1.8",
                {"new_capacity": 8},
                ("cluster", 6, 1),
            ),
        ]:
            flavor = next(offered for offered in flavors if offered.spec_code == old)
            instance_id = create("sdk-nodes", flavor)
            wait_running(instance_id)
            body = v2.ResizeInstanceBody(spec_code=new, change_type=change, available_zones=["local"], **more)
            client.resize_instance(v2.ResizeInstanceRequest(instance_id=instance_id, body=body))
            seen = wait_running(instance_id)
            checks.same(change, (seen.cache_mode, seen.sharding_count, seen.replica_count), seen_as)
            client.delete_single_instance(v2.DeleteSingleInstanceRequest(instance_id=instance_id))
            wait_gone(instance_id)


def test_import(flavor, backup_id, expected):
    with checks.part("a backup is imported into another instance: keys of the same name are overwritten, others stay"):
        target = create("sdk-target", flavor)
        shown = raw(wait_running(target))
        data = connect(shown)
        data.set("only-here", "stays")
        data.set("list", "is overwritten")
        body = v2.CreateMigrationTaskBody(
            task_name="sdk-import", description="by the SDK", migration_type="backupfile_import",
            migration_method="full_amount_migration",
            backup_files=v2.BackupFilesBody(file_source="backup_record", backup_id=backup_id),
            target_instance=v2.TargetInstanceBody(id=target, password=PASSWORD))
        made = client.create_migration_task(v2.CreateMigrationTaskRequest(body=body))
        checks.same("a new task", (made.name, made.status), ("sdk-import", "MIGRATING"))
        seen = wait_until("the end of the import", lambda: client.show_migration_task(v2.ShowMigrationTaskRequest(made.id)),
                          lambda shown: shown.status != "MIGRATING")
        checks.same("how it ended", (seen.status, seen.task_id, seen.backup_files.backup_id), ("SUCCESS", made.id, backup_id))
        checks.same("for Terraform", raw(seen)["backup_files"]["backup_record"], {"backup_id": backup_id})
        after = state(shown)
        checks.same("what was there stays", after[0].pop(b"only-here")[0], b"stays")
        checks.that("all else is of the backup", after == expected,
                    {db: sorted(set(after[db]) ^ set(expected[db]))[:5] for db in expected})
        listed = client.list_migration_task(v2.ListMigrationTaskRequest())
        checks.same("the list", (listed.count, listed.migration_tasks[0].task_id, listed.migration_tasks[0].target_instance_id),
                    (1, made.id, target))
        request = v2.DeleteMigrationTaskRequest(body=v2.DeleteMigrateTaskRequest(task_id_list=[made.id]))
        checks.same("deleted", client.delete_migration_task(request).task_id_list, [made.id])
        for unknown in (made.id, UNKNOWN):
            refused("an unknown task", lambda: client.show_migration_task(v2.ShowMigrationTaskRequest(unknown)), 400, "DCS.4133")
        wait_running(target)
        client.delete_single_instance(v2.DeleteSingleInstanceRequest(instance_id=target))
        wait_gone(target)


def wait_gone(instance_id):
    def status():
        try:
            show(instance_id)
        except ClientRequestException as failure:
            return failure.status_code
        return 200

    wait_until("gone", status, lambda seen: seen == 404)


def main():
    with checks.part("project and region are found by the SDK itself"):
        by_region = make_client(region=values["region"])
        checks.that("a list without a project id", by_region.list_instances(v2.ListInstancesRequest()).instances == [])
    flavors = client.list_flavors(v2.ListFlavorsRequest()).flavors
    flavor = min(flavors, key=lambda offered: float(offered.capacity[0]))
    zones = client.list_available_zones(v2.ListAvailableZonesRequest())
    checks.that("there is a zone", zones.available_zones, zones)
    instance_id = create("sdk-first", flavor, description="made by the SDK", tags=[v2.ResourceTag("team", "a")])
    try:
        test_instances(instance_id)
        first = test_round_trip(instance_id)
        second = test_nulls(instance_id)
        if first and second:
            test_paging(instance_id, second)
            test_refusals(instance_id, second, flavor)
            test_import(flavor, second, state(vars_of(show(instance_id))))
            test_exclusion(instance_id, second)
            test_operations(instance_id)
            test_delete(instance_id, first, flavor)
    finally:
        with checks.part("delete the instance"):
            wait_running(instance_id)
            client.delete_single_instance(v2.DeleteSingleInstanceRequest(instance_id=instance_id))
            wait_gone(instance_id)
            refused("a deleted instance", lambda: restores(instance_id), 404, "DCS.3022")
    test_master_standby(flavors)
    test_tls(flavors)
    test_other_nodes(flavors)
    checks.finish()


main()
