"""Talks to a running Dagster webserver as its page does: GraphQL over HTTP. Knows no code of the pipeline."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LOCATION = "analytics_pipeline"
REPOSITORY = "__repository__"
JOB = "__ASSET_JOB"

FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
BACKFILL_ENDS = ("COMPLETED", "FAILED", "CANCELED")
POLL_S = 0.25


@dataclass(frozen=True)
class Ui:
    """One webserver."""

    url: str

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send one GraphQL operation and return its data."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = json.loads(answer.read())
        assert "errors" not in body, body["errors"]
        return dict(body["data"])

    # ------------------------------------------------------------------ what a person does

    def materialize(self, assets: Sequence[str], key: str) -> str:
        """The button "Materialize" with one partition; returns the run's id."""
        data = self.ask(
            "mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) { __typename "
            "... on LaunchRunSuccess { run { runId } } ... on PythonError { message } "
            "... on RunConfigValidationInvalid { errors { message } } } }",
            p={
                "selector": {
                    "repositoryLocationName": LOCATION,
                    "repositoryName": REPOSITORY,
                    "pipelineName": JOB,
                    "assetSelection": [{"path": [asset]} for asset in assets],
                    "assetCheckSelection": [{"assetKey": {"path": [asset]}, "name": "gate"} for asset in assets],
                },
                "mode": "default",
                "runConfigData": "{}",
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": key}]},
            },
        )["launchPipelineExecution"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return str(data["run"]["runId"])

    def backfill(self, assets: Sequence[str], keys: Sequence[str]) -> str:
        """The button "Materialize" with several partitions; returns the backfill's id."""
        data = self.ask(
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) { __typename "
            "... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            p={
                "assetSelection": [{"path": [asset]} for asset in assets],
                "partitionNames": list(keys),
                "fromFailure": False,
            },
        )["launchPartitionBackfill"]
        assert data["__typename"] == "LaunchBackfillSuccess", data
        return str(data["backfillId"])

    def cancel_backfill(self, backfill_id: str) -> str:
        """The button "Cancel" of a backfill; returns what the page is told."""
        data = self.ask(
            "mutation($b: String!) { cancelPartitionBackfill(backfillId: $b) { __typename } }", b=backfill_id
        )
        return str(data["cancelPartitionBackfill"]["__typename"])

    def reexecute(self, run_id: str) -> str:
        """The button "Re-execute all" of a run; returns the new run's id."""
        data = self.ask(
            "mutation($p: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $p) { __typename "
            "... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }",
            p={"parentRunId": run_id, "strategy": "ALL_STEPS"},
        )["launchRunReexecution"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return str(data["run"]["runId"])

    def terminate(self, run_id: str, *, force: bool = False) -> str:
        """The button "Terminate" of a run, with its box ticked or not; returns what the page is told."""
        data = self.ask(
            "mutation($r: String!, $p: TerminateRunPolicy) { terminateRun(runId: $r, terminatePolicy: $p) "
            "{ __typename } }",
            r=run_id,
            p="MARK_AS_CANCELED_IMMEDIATELY" if force else "SAFE_TERMINATE",
        )
        return str(data["terminateRun"]["__typename"])

    # ------------------------------------------------------------------ what a person sees

    def run(self, run_id: str) -> dict[str, Any]:
        """Status, tags, times and failures of a run."""
        data = self.ask(
            "query($r: ID!) { runOrError(runId: $r) { ... on Run { runId status startTime endTime creationTime "
            "tags { key value } assetSelection { path } stepStats { stepKey status } } } }",
            r=run_id,
        )["runOrError"]
        data["tags"] = {tag["key"]: tag["value"] for tag in data["tags"]}
        return dict(data)

    def runs(self, tags: dict[str, str] | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Runs with these tags, the newest first."""
        data = self.ask(
            "query($f: RunsFilter, $n: Int) { runsOrError(filter: $f, limit: $n) { ... on Runs { results "
            "{ runId status startTime endTime creationTime tags { key value } assetSelection { path } } } } }",
            f={"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
            n=limit,
        )["runsOrError"]["results"]
        for run in data:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return list(data)

    def wait(self, run_id: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until a run has ended."""
        return wait_for(
            lambda: run if (run := self.run(run_id))["status"] in FINISHED else None,
            timeout_s,
            f"the end of run {run_id}",
        )

    def backfill_status(self, backfill_id: str) -> str:
        """REQUESTED, COMPLETED_SUCCESS …"""
        data = self.ask(
            "query($b: String!) { partitionBackfillOrError(backfillId: $b) { ... on PartitionBackfill "
            "{ status error { message } } } }",
            b=backfill_id,
        )["partitionBackfillOrError"]
        return str(data["status"])

    def wait_backfill(self, backfill_id: str, timeout_s: float = 90) -> str:
        """Wait until a backfill has ended, and return its status."""

        def ended() -> str | None:
            status = self.backfill_status(backfill_id)
            return status if status.startswith(BACKFILL_ENDS) else None

        return str(wait_for(ended, timeout_s, f"the end of backfill {backfill_id}"))

    def materialization(self, asset: str, key: str) -> dict[str, Any] | None:
        """The latest materialization of a partition: its run and its metadata by label."""
        events = self.ask(
            "query($a: AssetKeyInput!, $k: [String!]) { assetOrError(assetKey: $a) { ... on Asset { "
            "assetMaterializations(partitions: $k, limit: 1) { runId timestamp metadataEntries { label "
            "... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } "
            "... on FloatMetadataEntry { floatValue } ... on MarkdownMetadataEntry { mdStr } "
            "... on JsonMetadataEntry { jsonString } } } } } }",
            a={"path": [asset]},
            k=[key],
        )["assetOrError"].get("assetMaterializations", [])
        if not events:
            return None
        return {"runId": events[0]["runId"], "timestamp": float(events[0]["timestamp"]), **_by_label(events[0])}

    def checks(self, asset: str, limit: int = 100) -> list[dict[str, Any]]:
        """Executions of an asset's gate, the newest first."""
        executions = self.ask(
            'query($a: AssetKeyInput!, $n: Int!) { assetCheckExecutions(assetKey: $a, checkName: "gate", '
            "limit: $n) { runId status evaluation { severity partition description metadataEntries { label "
            "... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } "
            "... on JsonMetadataEntry { jsonString } } } } }",
            a={"path": [asset]},
            n=limit,
        )["assetCheckExecutions"]
        for execution in executions:
            if execution["evaluation"]:
                execution["evaluation"] |= {"metadata": _by_label(execution["evaluation"])}
        return list(executions)

    def check(self, asset: str, key: str, run_id: str | None = None) -> dict[str, Any] | None:
        """The latest evaluation of an asset's gate for one partition, of one run or of any."""
        for execution in self.checks(asset):
            evaluation = execution["evaluation"]
            if evaluation and evaluation["partition"] == key and run_id in (None, execution["runId"]):
                return execution
        return None

    def last_tick(self, sensor: str = "drain_kafka") -> dict[str, Any]:
        """The newest finished tick of a sensor: its status, and why it skipped."""
        ticks = self.ask(
            "query($s: InstigationSelector!) { instigationStateOrError(instigationSelector: $s) { "
            "... on InstigationState { ticks(limit: 1, statuses: [SKIPPED, SUCCESS, FAILURE]) "
            "{ status skipReason timestamp runIds error { message } } } } }",
            s={"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "name": sensor},
        )["instigationStateOrError"]["ticks"]
        return dict(ticks[0]) if ticks else {"status": "NONE", "skipReason": None}


def _by_label(event: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for entry in event["metadataEntries"]:
        for kind in ("intValue", "text", "floatValue", "mdStr", "jsonString"):
            if kind in entry:
                found[entry["label"]] = json.loads(entry[kind]) if kind == "jsonString" else entry[kind]
    return found


def wait_for(answer: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Ask until the answer is something, and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = answer()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:.0f} s"
        time.sleep(POLL_S)
