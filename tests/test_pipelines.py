"""The files in docs/pipelines do what they say: run as they stand, on a small real model.

Only what belongs to others is stood in for: installing, `gh` and `curl`, and GitHub's own actions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.toml import to_toml
from tests import chain, tiny
from tests.warm import serving

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ROOT / "docs" / "pipelines"
INT8 = chain.RECIPE["candidates"][0]
NOTHING = {"name": "nothing", "quantization": "none"}
# No budget on time: on a busy machine a verdict must not depend on it here.
PROFILES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "good": (INT8, {"accuracy_drop_points": 20.0, "disk_size_ratio": 0.9}),
    "large": (NOTHING, {"accuracy_drop_points": 20.0, "disk_size_ratio": 1.5}),
    "strict": (INT8, {"accuracy_drop_points": 20.0, "disk_size_mib": 1e-6}),
    "thin": (INT8, {"accuracy_drop_points": 0.1}),
}
# `gh` and `curl` move files between the job and a folder that plays the server.
STAND_INS = {
    "gh": """#!/bin/sh
case "$1 $2" in
  "release download") [ "$3 $5" = "--pattern --dir" ] && cp "$SERVER/$4" "$6/" 2>/dev/null ;;
  "release create") cp "$4" "$SERVER/" && echo "released $3" ;;
  *) exit 64 ;;
esac
""",
    "curl": """#!/bin/sh
while [ $# -gt 1 ]; do
  case "$1" in
    --output) output=$2; shift ;;
    --upload-file) upload=$2; shift ;;
    --header) shift ;;
  esac
  shift
done
[ "$1" = "https://gitlab.example/api/v4/projects/7/packages/generic/model/latest/model.tar.gz" ] ||
  exit 64
if [ -n "${upload:-}" ]; then exec cp "$upload" "$SERVER/"; fi
exec cp "$SERVER/model.tar.gz" "$output" 2>/dev/null
""",
}


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What every project here shares: a model, data, profiles, programs and a cache."""
    root = tmp_path_factory.mktemp("materials")
    tiny.checkpoint("bert", root / "models" / "reviews")
    (root / "data").mkdir()
    chain.text_data(root / "data" / "reviews.jsonl")
    (root / "targets").mkdir()
    for name, (candidate, budgets) in PROFILES.items():
        recipe = {"candidates": [candidate], "calibration_examples": 16}
        profile = chain.quick_target(recipe=recipe, **budgets)
        text = to_toml(profile.model_dump(mode="json", exclude_none=True))
        (root / "targets" / f"{name}.toml").write_text(text, encoding="utf-8")
    (root / "bin").mkdir()
    for name, text in STAND_INS.items():
        program = root / "bin" / name
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
    with serving(root / "bin" / "exporter"):
        yield root


@pytest.fixture
def project(materials: Path, tmp_path: Path) -> Path:
    """A checkout as a runner finds it, and an empty server."""
    place = tmp_path / "project"
    place.mkdir()
    for name in ("models", "data", "targets"):
        (place / name).symlink_to(materials / name)
    (place / ".exporter-cache").symlink_to(materials / "cache")
    (materials / "cache").mkdir(exist_ok=True)
    (tmp_path / "server").mkdir()
    return place


def environment(project: Path, **more: str) -> dict[str, str]:
    programs = (project / "models").resolve().parent / "bin"
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SERVER": str(project.parent / "server"),
        "EXPORTER_CACHE": str(project / ".exporter-cache"),
        **more,
    }


def shell(
    script: str, project: Path, env: dict[str, str], *how: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *how, "-c", script],
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# GitHub Actions


class GitHub:
    """Runs the shell steps of the workflow in one checkout, as GitHub does."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.summary = project.parent / "summary.md"
        self.workflow = yaml.safe_load((PIPELINES / "github-actions.yml").read_text())

    def job(self, target: str, *, tag: str = "") -> tuple[str, str]:
        """The step that failed ("" if none did) and all output."""
        self.summary.write_text("")
        for leftover in ("baseline", "dist", "comparison.md"):
            shutil.rmtree(self.project / leftover, ignore_errors=True)
            (self.project / leftover).unlink(missing_ok=True)
        known = {
            "github.workspace": str(self.project),
            "github.token": "token",
            "startsWith(github.ref, 'refs/tags/')": "true" if tag else "false",
        }

        def filled(values: dict[str, str]) -> dict[str, str]:
            return {
                name: re.sub(r"\$\{\{ (.*?) \}\}", lambda found: known[found[1]], value)
                for name, value in values.items()
            }

        env = environment(self.project, GITHUB_STEP_SUMMARY=str(self.summary))
        env |= filled(self.workflow["env"]) | {"GITHUB_REF_NAME": tag}
        env["TARGET"] = f"targets/{target}.toml"
        output = ""
        for step in self.workflow["jobs"]["model"]["steps"]:
            condition = step.get("if", "")
            tags_only = condition == "startsWith(github.ref, 'refs/tags/')"
            if "run" not in step or step["name"] == "Install" or (tags_only and not tag):
                continue
            assert not condition or tags_only
            assert "${{" not in step["run"]  # nothing of others is pasted into a script
            done = shell(step["run"], self.project, env | filled(step.get("env", {})), "-e")
            output += done.stdout
            if done.returncode:
                return step["name"], output
        return "", output


def test_github_actions(project: Path) -> None:
    github = GitHub(project)
    failed, output = github.job("good", tag="v1")
    assert failed == "", output
    assert "nothing to compare with" in output
    assert "released v1" in output
    assert github.summary.read_text().startswith("# ✓ PASS")
    steps = github.workflow["jobs"]["model"]["steps"]
    (results,) = [s for s in steps if s.get("name") == "Test results"]
    assert list(project.glob(results["with"]["report_paths"]))

    failed, output = github.job("good")
    assert failed == "", output
    assert "no metric regresses" in output
    assert "released" not in output.replace("released one", "")
    assert github.summary.read_text().count("# ✓ PASS") == 2

    failed, output = github.job("large")  # within its budgets, and larger than what users have
    assert failed == "Compare", output
    assert "regresses" in output.splitlines()[-1]
    assert "✕ FAIL" in github.summary.read_text()

    failed, output = github.job("strict")
    assert failed == "Export", output
    assert output.splitlines()[-1].startswith("Failed one budget")


def test_github_actions_release_nothing_that_is_not_shown(project: Path) -> None:
    github = GitHub(project)
    failed, output = github.job("thin")
    assert failed == "", output
    assert "::warning::" in output
    failed, output = github.job("thin", tag="v1")
    assert failed == "Export", output
    assert not list((project.parent / "server").iterdir())


def test_github_actions_stop_at_a_wrong_job(project: Path) -> None:
    failed, output = GitHub(project).job("nonsense")
    assert failed == "Export"
    assert output.splitlines()[-1].startswith("error: targets/nonsense.toml")


# GitLab CI


class GitLab:
    """Runs the script of each job of a pipeline, as GitLab does."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.file = yaml.safe_load((PIPELINES / "gitlab-ci.yml").read_text())

    def pipeline(self, target: str, *, tag: str = "") -> list[tuple[str, int, bool, str]]:
        """Name, exit code, whether the pipeline goes on, and output of each job that ran."""
        known = {
            "CI_PROJECT_DIR": str(self.project),
            "CI_API_V4_URL": "https://gitlab.example/api/v4",
            "CI_PROJECT_ID": "7",
            "CI_JOB_TOKEN": "token",
        }
        env = environment(self.project) | known
        for name, value in self.file["variables"].items():
            env[name] = re.sub(r"\$(\w+)", lambda found: env[found[1]], value)
        env["TARGET"] = f"targets/{target}.toml"
        shutil.rmtree(self.project / "dist", ignore_errors=True)
        ran = []
        for stage in self.file["stages"]:
            for name, job in self.jobs(tag).items():
                if job["stage"] != stage:
                    continue
                done = shell("\n".join(job["script"]), self.project, env, "-eo", "pipefail")
                allowed = done.returncode in job.get("allow_failure", {}).get("exit_codes", [])
                goes_on = done.returncode == 0 or allowed
                ran.append((name, done.returncode, goes_on, done.stdout))
                if not goes_on:
                    return ran
        return ran

    def jobs(self, tag: str) -> dict[str, dict[str, Any]]:
        rule = "$CI_COMMIT_TAG" if tag else '$CI_PIPELINE_SOURCE == "merge_request_event"'
        found = {}
        for name, job in self.file.items():
            if not isinstance(job, dict) or "rules" not in job:
                continue
            whole = self.file.get(job.get("extends", ""), {}) | job
            if [r["if"] for r in job["rules"]] == [rule]:
                found[name] = whole
        return found


def test_gitlab_ci(project: Path) -> None:
    gitlab = GitLab(project)
    first = gitlab.pipeline("good", tag="v1")
    assert [(name, code) for name, code, _, _ in first] == [
        ("model-release", 0), ("compare-release", 0), ("release", 0)
    ], first  # fmt: skip
    assert "nothing was released yet" in first[1][3]
    junit = gitlab.file[".export"]["artifacts"]["reports"]["junit"]
    assert list(project.glob(junit))

    (_, again) = gitlab.pipeline("good")
    assert again[:2] == ("compare", 0), again
    assert "no metric regresses" in again[3]
    (_, larger) = gitlab.pipeline("large")
    assert larger[:3] == ("compare", 1, False), larger
    (failed,) = gitlab.pipeline("strict")
    assert failed[:3] == ("model", 1, False), failed
    draft = gitlab.pipeline("thin")
    assert draft[0][:3] == ("model", 3, True), draft
    (blocked,) = gitlab.pipeline("thin", tag="v2")
    assert blocked[:3] == ("model-release", 3, False), blocked


# Make


def make(directory: Path, env: dict[str, str], *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["make", *arguments],
        cwd=directory,
        env={k: v for k, v in env.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout.rstrip().splitlines()


def test_make_stops_and_the_last_line_before_its_own_is_the_reason(project: Path) -> None:
    env = environment(project)
    (project / "Makefile").write_text(f"include {PIPELINES / 'snippet.mk'}\n")
    code, lines = make(project, env, "model", "TARGET=targets/good.toml")
    assert code == 0, lines
    shutil.copytree(project / "dist" / "reviews-mobile", project / "released" / "reviews-mobile")

    code, lines = make(project, env, "model-compare", "TARGET=targets/large.toml")
    assert code == 2
    assert lines[-2].startswith("The new artifact regresses in")
    code, lines = make(project, env, "model", "TARGET=targets/strict.toml")
    assert code == 2
    assert lines[-2].startswith("Failed one budget: size on disk")
    assert re.match(r"make: \*\*\* .*Error 1$", lines[-1])
    code, lines = make(project, env, "model", "TARGET=targets/thin.toml")
    assert (code, lines[-1][-7:]) == (2, "Error 3")
    assert lines[-2].startswith("Too little evidence for accuracy drop")
    code, lines = make(project, env, "model-draft", "TARGET=targets/thin.toml")
    assert code == 0, lines


def own_make(materials: Path, *arguments: str) -> tuple[int, list[str]]:
    """`make` in this checkout, with this Python in the place of its .venv."""
    env = {**os.environ, "EXPORTER_CACHE": str(materials / "cache")}
    return make(ROOT, env, "-o", ".venv/.ready", f"PY={sys.executable}", *arguments)


@pytest.mark.parametrize("goal", ["export", "plan"])
def test_our_own_make_refuses_a_target_before_it_trains_a_sample(
    materials: Path, goal: str
) -> None:
    code, lines = own_make(materials, goal, "TARGET=moblie")
    assert code == 2
    assert len(lines) == 2, lines
    assert lines[0].startswith("error: --target: unknown target 'moblie'; did you mean 'mobile'?")
    assert re.match(r"make: \*\*\* .*Error 2$", lines[1])


def test_our_own_make_ends_with_the_reason(materials: Path, tmp_path: Path) -> None:
    code, lines = own_make(
        materials, "export", f"MODEL={materials}/models/reviews", f"OUT={tmp_path}/out",
        f"DATA={materials}/data/reviews.jsonl", f"TARGET={materials}/targets/strict.toml",
    )  # fmt: skip
    assert code == 2
    assert lines[-2].startswith("Failed one budget: size on disk")
    assert re.match(r"make: \*\*\* .*Error 1$", lines[-1])


# The hook


def test_the_hook_lets_a_good_release_through_and_blocks_the_others(project: Path) -> None:
    env = environment(
        project,
        GIT_CONFIG_GLOBAL="/dev/null",
        GIT_CONFIG_SYSTEM="/dev/null",
        GIT_AUTHOR_NAME="a",
        GIT_AUTHOR_EMAIL="a@example.com",
        GIT_COMMITTER_NAME="a",
        GIT_COMMITTER_EMAIL="a@example.com",
    )

    def ran(command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return shell(command, project, env | more)

    for name in ("good", "large", "strict", "thin"):
        ran(
            f"exporter export models/reviews -d data/reviews.jsonl -t targets/{name}.toml"
            f" -o dist/{name}"
        )
    begun = ran(
        "git init -q --bare ../origin && git init -q . && git remote add origin ../origin &&"
        " git commit -q --allow-empty -m first && git tag v1 && git tag v2 && git tag v3 &&"
        f" cp {PIPELINES / 'pre-release.sh'} .git/hooks/pre-push"
    )
    assert begun.returncode == 0, begun.stdout

    def pushed() -> str:
        return ran("git -C ../origin for-each-ref --format='%(refname:short)'").stdout

    branch = ran("git push -q origin HEAD:main", ARTIFACT="dist/none")  # no release, no judgement
    assert branch.returncode == 0, branch.stdout
    good = ran("git push -q origin v1", ARTIFACT="dist/good")
    assert good.returncode == 0, good.stdout
    assert pushed().split() == ["main", "v1"]
    for options, words in (
        ({"ARTIFACT": "dist/strict"}, "not good enough"),
        ({"ARTIFACT": "dist/large", "BASELINE": "dist/good"}, "not good enough"),
        ({"ARTIFACT": "dist/thin"}, "too little evidence"),
        ({"ARTIFACT": "dist/none"}, "could not be judged"),
    ):
        blocked = ran("git push -q origin v2", **options)
        assert blocked.returncode != 0, options
        assert re.search(f"pre-release: blocked, .*{words}", blocked.stdout), blocked.stdout
    assert pushed().split() == ["main", "v1"]
    same = ran("git push -q origin v3", ARTIFACT="dist/good", BASELINE="dist/good")
    assert same.returncode == 0, same.stdout
    gone = ran("git push -q origin :v1", ARTIFACT="dist/strict")  # taking one back is no release
    assert gone.returncode == 0, gone.stdout
    by_hand = ran(f"sh {PIPELINES / 'pre-release.sh'}", ARTIFACT="dist/strict")
    assert by_hand.returncode == 1


def test_the_page_names_every_file_and_every_code() -> None:
    text = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    for path in PIPELINES.iterdir():
        assert f"(pipelines/{path.name})" in text
    assert [f"| {code} |" in text for code in range(5)] == [True] * 5
