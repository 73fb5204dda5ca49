"""S3 that checks rights: moto's server with its IAM turned on, and users under policies.

moto checks signature, action and key of each request against the policies of its user, as Amazon does, with one
exception: a bulk removal is checked against the bucket, not against each key.
"""

from __future__ import annotations

import copy
import json
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import servers
from servers import BUCKET, Storage

POLICIES = Path(__file__).parents[1] / "infra" / "policies"
PLACEHOLDER = "BUCKET"
Policy = dict[str, Any]


def read_policy(name: str, bucket: str = BUCKET) -> Policy:
    """Return a policy of `infra/policies` for a bucket."""
    return json.loads((POLICIES / f"{name}.json").read_text().replace(PLACEHOLDER, bucket))


def without(policy: Policy, action: str) -> Policy:
    """Return a policy that lacks one action."""
    less = copy.deepcopy(policy)
    for statement in less["Statement"]:
        statement["Action"] = [one for one in statement["Action"] if one != action]
    less["Statement"] = [statement for statement in less["Statement"] if statement["Action"]]
    return less


def and_bulk_removal(policy: Policy) -> Policy:
    """Return a policy that moto lets remove many keys at once."""
    more = copy.deepcopy(policy)
    more["Statement"].append({"Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": [f"arn:aws:s3:::{BUCKET}"]})
    return more


@dataclass
class GuardedStorage:
    """A bucket whose server asks who you are. `root` may do everything."""

    root: Storage

    def user(self, name: str, policy: Policy) -> dict[str, object]:
        """Make a user whose rights are a policy; return storage options of the user."""
        iam, name = self._client("iam"), f"{name}-{uuid.uuid4().hex}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return servers.s3_options(self.root.port, key["AccessKeyId"], key["SecretAccessKey"])

    def role(self, name: str, policy: Policy) -> dict[str, object]:
        """Make a role whose rights are a policy and take it on; return storage options, with a token of a session."""
        iam, name = self._client("iam"), f"{name}-{uuid.uuid4().hex}"
        trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
        document = {"Version": "2012-10-17", "Statement": [trust]}
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))["Role"]
        iam.put_role_policy(RoleName=name, PolicyName="only", PolicyDocument=json.dumps(policy))
        session = self._client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
        options = servers.s3_options(self.root.port, session["AccessKeyId"], session["SecretAccessKey"])
        return options | {"token": session["SessionToken"]}

    def _client(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service,
            endpoint_url=str(self.root.options["endpoint_url"]),
            region_name="us-east-1",
            aws_access_key_id=str(self.root.options["key"]),
            aws_secret_access_key=str(self.root.options["secret"]),
        )


@contextmanager
def guarded() -> Iterator[GuardedStorage]:
    """Run a server that checks rights, with one bucket."""
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    with servers.moto() as open_storage:
        options = GuardedStorage(open_storage).user("root", everything)
        turn_on = urllib.request.Request(
            f"http://127.0.0.1:{open_storage.port}/moto-api/reset-auth",
            data=b"0",
            method="POST",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(turn_on, timeout=30).close()
        yield GuardedStorage(Storage(open_storage.bucket, options, open_storage.port))
