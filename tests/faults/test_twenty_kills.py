"""kill -9 of the trainer at 20 seeded places, the queue server kept, flushed or restarted empty in between.

Each of the four runs is killed five times, so that a resume is hit as well as what came before it. The workers are the
stub engine's: what they sample depends on the weights alone, as with a real one, but takes no time.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tersely.testing.faultpoints import POINTS
from tersely.testing.services import Services
from tersely.trainer.history import fold
from tersely.trainer.wal import read_records

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STEPS, GROUPS_PER_STEP = 18, 3
SETS = (
    f"run.steps={STEPS}",
    f"run.groups_per_step={GROUPS_PER_STEP}",
    "run.group_size=4",
    "run.checkpoint_every=3",
    "rollout.engine=stub",
    "evaluation.prompts=0",
)
RUNS, KILLS_PER_RUN = 4, 5
# A worker writes of a group once it has handed it on, so the trainer may be a moment ahead; a new trainer, the only one
# that could send a logged group again, takes longer to start.
WRITES_LATE_SECONDS = 2.0
WIPES = ("keep", "flush", "keep", "restart_empty")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def plan() -> list[list[tuple[str, str]]]:
    """(Fault, what happens to the queue server) of each kill of each run: every point at least once, the rest drawn.

    No fault is more than three steps away, so that five of them fit into a run.
    """
    draw = random.Random(3)
    points = [*POINTS, *draw.choices(POINTS, k=RUNS * KILLS_PER_RUN - len(POINTS))]
    draw.shuffle(points)
    most = {"inside_checkpoint": 1, "after_checkpoint": 1, "after_prune": 1, "before_log_write": 6}
    most |= {"inside_log_write": 6, "after_log_write": 6}
    kills = [
        (f"{point}:{draw.randint(1, most.get(point, 3))}", WIPES[(number + number // RUNS) % len(WIPES)])
        for number, point in enumerate(points)
    ]
    return [kills[run::RUNS] for run in range(RUNS)]


def finish(services: Services, *, resume: bool) -> str:
    trainer = services.start_trainer(resume=resume)
    assert trainer.wait(timeout=240) == 0, services.output(trainer)
    report = services.report()
    groups = report["groups"]
    assert groups["trained"] == STEPS * GROUPS_PER_STEP
    assert groups["in_flight"] == 0
    assert groups["issued"] == sum(groups[key] for key in ("trained", "stale", "no_signal", "quarantined"))
    weights: str = report["final_weights_sha256"]
    return weights


@pytest.fixture(scope="module")
def calm_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the final weights of the run that nobody disturbs."""
    with Services(tmp_path_factory.mktemp("calm"), TINY, SETS) as services:
        weights = finish(services, resume=False)
        counts = Counter(group_id for _, group_id in services.generated())
        assert len(counts) >= STEPS * GROUPS_PER_STEP
        assert set(counts.values()) == {1}
    return weights


def test_the_plan_has_twenty_kills_and_every_point() -> None:
    faults = [fault for kills in plan() for fault, _ in kills]
    assert len(faults) == 20
    assert {fault.partition(":")[0] for fault in faults} == set(POINTS)
    assert {wipe for kills in plan() for _, wipe in kills} == set(WIPES)


@pytest.mark.parametrize("run", range(RUNS))
def test_the_weights_are_those_of_the_calm_run_and_no_finished_group_is_generated_again(
    run: int, calm_weights: str, tmp_path: Path
) -> None:
    with Services(tmp_path, TINY, SETS) as services:
        for number, (fault, wipe) in enumerate(plan()[run]):
            trainer = services.start_trainer(resume=(services.run_dir / "log" / "run.wal").exists(), fault=fault)
            assert trainer.wait(timeout=240) == -signal.SIGKILL, f"{number}: {fault}\n{services.output(trainer)}"
            if wipe == "flush":
                services.flush()
            elif wipe == "restart_empty":
                services.restart_empty()
        assert finish(services, resume=True) == calm_weights
        generated = list(services.generated())
    logged = {
        group.group.prompt.group_id: record.time
        for record in read_records(services.run_dir / "log" / "run.wal")
        for group in record.batch_formed.groups
    }
    assert len(logged) == STEPS * GROUPS_PER_STEP
    again = [group_id for time, group_id in generated if time > logged.get(group_id, time) + WRITES_LATE_SECONDS]
    assert again == [], f"generated again after they were logged: {again}"
    with (services.run_dir / "events.jsonl").open() as events:
        trained = Counter(line.split('"group_id": "')[1][:64] for line in events if '"group_trained"' in line)
    assert set(trained.values()) == {1}
    history = fold(read_records(services.run_dir / "log" / "run.wal"))
    assert history.versions[STEPS].weights_sha256 == calm_weights
