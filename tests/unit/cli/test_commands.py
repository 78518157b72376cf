"""The command line as a user meets it, in processes of its own where that matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tersely.cli import services
from tersely.cli.config import check_plugins
from tersely.config import load_recipe
from tersely.errors import ConfigUnknownKey, ConfigValue, PackageMissing, RewardUnknown, TerselyError
from tersely.node.options import ServiceOptions


def tersely(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tersely.cli", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text('[run]\nsteps = 7\n[model]\nname = "tiny"\n')
    return path


def assert_fails(result: subprocess.CompletedProcess[str], code: int, kind: str) -> None:
    assert result.returncode == code, result.stderr
    assert f"error[{kind}]" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "grpc", "redis")
    code = f"import sys, tersely.cli.main; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
    shown = tersely("--help")
    assert shown.returncode == 0
    for command in ("up", "trainer", "rollout", "scorer", "judge", "status", "config", "samples", "runs", "health"):
        assert f"  {command}" in shown.stdout


def test_config_check(recipe: Path) -> None:
    good = tersely("config", "check", str(recipe))
    assert (good.returncode, good.stdout) == (0, "ok\n")
    unknown = tersely("config", "check", str(recipe), "--set", "run.stepps=3")
    assert_fails(unknown, 12, "config_unknown_key")
    assert "run.steps" in unknown.stderr
    assert_fails(tersely("config", "check", str(recipe), "--set", "run.steps=0"), 13, "config_value")
    assert_fails(tersely("config", "check", str(recipe.with_name("no.toml"))), 10, "config_file_missing")
    assert_fails(tersely("config", "check", str(recipe), "--set", "rewards.lenght.weight=1"), 80, "reward_unknown")


@pytest.mark.parametrize(
    ("override", "error", "hint"),
    [
        ('rewards.length.scal="raw"', ConfigUnknownKey, "scale"),
        ("rewards.length.wieght=2.0", ConfigUnknownKey, "weight"),
        ('rewards.length.scale="rew"', ConfigValue, "raw"),
        ("rollout.engine=torhc", ConfigValue, "torch"),
        ("rewards.rouge.weight=1.0", RewardUnknown, "rouge_l"),
    ],
)
def test_what_no_plugin_knows_is_refused_with_the_nearest_name(
    override: str, error: type[TerselyError], hint: str
) -> None:
    with pytest.raises(error) as caught:
        check_plugins(load_recipe(None, [override], {}).recipe)
    assert f"Did you mean {hint}?" == caught.value.way_out


def test_what_the_plugins_know_passes() -> None:
    check_plugins(load_recipe(None, ["rewards.length.scale=raw", "rollout.engine=stub"], {}).recipe)
    check_plugins(load_recipe(None, ["rollout.engine=elsewhere", "rollout.workers=0"], {}).recipe)


def test_a_reward_by_a_judge_needs_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERSELY_JUDGE", raising=False)
    judged = ["rewards.judge.axis=clarity"]
    with pytest.raises(ConfigValue, match="which judge to ask") as caught:
        check_plugins(load_recipe(None, judged, {}).recipe)
    assert "judge.endpoint" in caught.value.way_out
    check_plugins(load_recipe(None, [*judged, "judge.endpoint=http://127.0.0.1:1/v1"], {}).recipe)
    check_plugins(load_recipe(None, [*judged, "rewards.judge.address=127.0.0.1:1"], {}).recipe)
    monkeypatch.setenv("TERSELY_JUDGE", "127.0.0.1:1")
    check_plugins(load_recipe(None, judged, {}).recipe)


def test_config_show_says_where_values_come_from(recipe: Path) -> None:
    result = tersely("config", "show", str(recipe), "--set", "run.seed=4", "--json", TERSELY_SET_RUN__GROUP_SIZE="6")
    rows = json.loads(result.stdout)
    assert rows["run.steps"] == {"value": 7, "source": "file r.toml"}
    assert rows["run.seed"] == {"value": 4, "source": "--set"}
    assert rows["run.group_size"] == {"value": 6, "source": "env TERSELY_SET_RUN__GROUP_SIZE"}
    assert rows["run.max_staleness"]["source"] == "default"
    shown = tersely("config", "show", str(recipe), "--set", "queue.url=redis://me:hunter2@box")
    assert "hunter2" not in shown.stdout
    table = shown.stdout.splitlines()
    assert next(line for line in table if line.startswith("run.steps ")).split() == ["run.steps", "7", "file", "r.toml"]


def test_up_refuses_bad_input_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    up = ("up", str(recipe), "--run-dir", str(run_dir), "--plain")
    assert_fails(tersely(*up, "--set", "run.stepps=1"), 12, "config_unknown_key")
    assert_fails(tersely(*up, "--set", "rewards.length.scal=raw"), 12, "config_unknown_key")
    assert_fails(tersely(*up, "--set", "queue.url=redis://127.0.0.1:1"), 40, "redis_unreachable")
    assert_fails(tersely(*up, "--resume"), 61, "run_dir_missing")
    assert not run_dir.exists()
    (run_dir / "log").mkdir(parents=True)
    (run_dir / "log" / "run.wal").touch()
    assert_fails(tersely(*up), 62, "run_dir_not_empty")
    assert [path.name for path in run_dir.iterdir()] == ["log"]


def test_status_of_no_run(tmp_path: Path) -> None:
    assert_fails(tersely("status", "--run-dir", str(tmp_path), "--json"), 61, "run_dir_missing")


def test_status_runs_and_samples_of_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    run_dir.mkdir(parents=True)
    status = {"run_id": "r-1", "state": "finished", "step": 2, "steps": 2, "time": time.time(), "nodes": [], "extra": 5}
    status["alarms"] = [{"name": "loss_of_signal", "step": 2, "message": "none\x1b", "setting": "run.group_size"}]
    (run_dir / "status.json").write_text(json.dumps(status))
    rows = [
        {
            "step": n,
            "prompt_id": f"p{n}",
            "tokens": n,
            "target_tokens": 9,
            "rewards": {"length": reward},
            "text": "a\x1b[2J",
        }
        for n, reward in enumerate([-0.5, None, -0.1, -0.9])
    ]
    held_out = {**rows[0], "step": 9, "outcome": "evaluation", "evaluation": "after", "mode": "greedy"}
    rows.append(held_out)
    (run_dir / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(tersely("status", "--run-dir", str(run_dir), "--json").stdout)
    assert (found["state"], found["extra"], found["nodes"]) == ("finished", 5, [])
    shown = tersely("status", str(run_dir)).stdout
    assert shown == tersely("status", "--run-dir", str(run_dir)).stdout
    assert tersely("status").returncode == tersely("status", "a", "--run-dir", "b").returncode == 2
    assert "step 2/2" in shown
    assert "alarm loss_of_signal at step 2: none " in shown
    assert [row["run_id"] for row in json.loads(tersely("runs", str(tmp_path / "runs"), "--json").stdout)] == ["r-1"]

    def steps(*args: str) -> list[int]:
        lines = tersely("samples", "--run-dir", str(run_dir), "--json", *args).stdout.splitlines()
        return [json.loads(line)["step"] for line in lines]

    assert steps("--worst", "2") == [3, 0]
    assert steps("--best", "1") == [2]
    assert steps("--last", "2") == [2, 3]
    assert steps("--evaluation", "after") == [9]
    assert "evaluation after, greedy" in tersely("samples", "--run-dir", str(run_dir), "--evaluation", "after").stdout
    assert "\x1b" not in tersely("samples", "--run-dir", str(run_dir)).stdout


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "trainer"

        def load(self) -> object:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(services, "entry_points", lambda group: [Entry()])
    with pytest.raises(PackageMissing, match="torch") as caught:
        services.run_service("trainer", ServiceOptions())
    assert "pip install 'tersely[trainer]'" in caught.value.way_out
    with pytest.raises(PackageMissing, match="provides the service judge"):
        services.run_service("judge", ServiceOptions())


def test_a_service_gets_its_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tersely.cli.main import app

    seen: list[ServiceOptions] = []

    def run_trainer(options: ServiceOptions) -> int:
        seen.append(options)
        return 7

    class Entry:
        name = "trainer"

        def load(self) -> object:
            return run_trainer

    monkeypatch.setattr(services, "entry_points", lambda group: [Entry()])
    args = ["trainer", "--recipe", "r.toml", "--run-dir", str(tmp_path), "--set", "a.b=1", "--set", "c.d=2", "--resume"]
    result = CliRunner().invoke(app, [*args, "--redis-url", "redis://h"])
    assert result.exit_code == 7
    expected = ServiceOptions(
        recipe=Path("r.toml"), run_dir=tmp_path, overrides=("a.b=1", "c.d=2"), resume=True, redis_url="redis://h"
    )
    assert seen == [expected]


def test_health_of_nobody_is_not_healthy() -> None:
    result = tersely("health", "127.0.0.1:1", "--timeout", "5")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
