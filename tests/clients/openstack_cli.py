"""The command line client: `openstack --os-cloud ... dcs instance ...`, with a clouds.yaml as its users write it."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from harness import Api, Checks, instance, wait_until

checks = Checks()
api = Api()
PROGRAM = pathlib.Path(sys.executable).with_name("openstack")


def clouds(override):
    admin = api.admin
    text = f"""
clouds:
  cachekeep:
    auth:
      auth_url: {api.endpoint}/v3
      username: {admin["user"]}
      password: {admin["password"]}
      user_domain_name: {admin["domain"]}
      project_name: {admin["project"]}
      project_domain_name: {admin["domain"]}
    region_name: {admin["region"]}
    verify: false
"""
    if override:
        text += f"    dcs_endpoint_override: {api.endpoint}/v1.0/%(project_id)s\n"
    return text


def openstack(folder, *words):
    """Runs one command; its answer as JSON."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    environment["OS_CLIENT_CONFIG_FILE"] = str(folder / "clouds.yaml")
    command = [str(PROGRAM), "--os-cloud", "cachekeep", "dcs", *words, "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    checks.that(f"openstack dcs {' '.join(words)}", done.returncode == 0, done.stderr[-1500:])
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None


def column(rows, *names):
    """A column by any of its names: versions of the client differ in their spelling."""
    wanted = {name.lower().replace("_", " ") for name in names}
    return [value for row in rows for name, value in row.items() if name.lower().replace("_", " ") in wanted]


def run(folder, override, instance_id):
    (folder / "clouds.yaml").write_text(clouds(override), encoding="utf-8")
    listed = openstack(folder, "instance", "list")
    checks.that("the instance is listed", instance_id in column(listed, "id"), listed)
    if override:
        # Each command takes a second or more to start; how the endpoint was found makes no other difference.
        return
    shown = openstack(folder, "instance", "show", "cli-client")
    checks.that("and shown by its name", instance_id in shown.values(), shown)

    openstack(folder, "instance", "backup", "create", instance_id, "--description", "from the command line")
    backup = wait_until("backup", lambda: api.records(instance_id, "backup", limit=1)[0],
                        lambda record: record["status"] not in ("waiting", "backuping"))
    checks.same("backup", (backup["status"], backup["remark"]), ("succeed", "from the command line"))
    rows = openstack(folder, "instance", "backup", "list", instance_id)
    checks.that("backup list", backup["backup_id"] in column(rows, "id"), rows)

    openstack(folder, "instance", "backup", "restore", instance_id, "--backup", backup["backup_id"])
    restore = wait_until("restore", lambda: api.records(instance_id, "restore", limit=1)[0],
                         lambda record: record["status"] not in ("waiting", "restoring"))
    checks.same("restore", (restore["status"], restore["backup_id"]), ("succeed", backup["backup_id"]))
    rows = openstack(folder, "instance", "restore", "list", instance_id, "--limit", "5", "--start", "1")
    checks.same("restore list", column(rows, "id")[0], restore["restore_id"])
    total = len(api.records(instance_id, "restore", limit=1000))
    rows = openstack(folder, "instance", "restore", "list", instance_id, "--limit", "5", "--start", "2")
    checks.same("restore list from the second", len(rows), total - 1)


def main():
    with tempfile.TemporaryDirectory() as name, instance(api, "cli-client") as instance_id:
        for override in (False, True):
            with checks.part("endpoint by override" if override else "endpoint from the catalogue"):
                run(pathlib.Path(name), override, instance_id)
    checks.finish()


main()
