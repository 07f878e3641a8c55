"""The safety layer as a whole: every arm, the rules chunks must keep, the clock, and the policy behind the chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from franka_bridge.arbitration import Arm, ArmSetup, Mode, TeleopStep
from franka_bridge.chunk import NANOSECONDS, Chunk, ChunkOrder, check_content, check_timing
from franka_bridge.errors import ChunkRefused, LimitError, Refusal, RequestRefused
from franka_bridge.limits import Limits, Timeouts
from franka_bridge.poses import Pose
from franka_bridge.watchdogs import ClockWatch, PublisherWatch

# The target is a function of time on a fixed grid. A look at the clock that comes late, or a simulated clock that takes
# larger steps, makes up for as much; beyond, the target's time stands still rather than the target hurrying.
MAX_CATCH_UP_S = 0.02


@dataclass(frozen=True)
class Target:
    """What to publish for one arm: `pose` in the arm's base frame, for the time `stamp_ns`."""

    arm: str
    stamp_ns: int
    pose: Pose


class Bridge:
    """Everything the node asks. Not thread-safe; times are nanoseconds of the ROS clock.

    `period` is the time between two targets in seconds. Raises LimitError for a home pose outside the workspace box.
    """

    def __init__(self, setups: Sequence[ArmSetup], limits: Limits, timeouts: Timeouts, period: float) -> None:
        for setup in setups:
            outside = limits.outside(setup.home.position)
            if outside:
                raise LimitError(f"home_position: {outside}, the workspace box")
        self.arms = {setup.name: Arm(setup, limits, timeouts, period) for setup in setups}
        self.counters: Counter[str] = Counter()
        self.last_refusal = ""
        self._limits = limits
        self._timeouts = timeouts
        self._period_ns = round(period * NANOSECONDS)
        self._max_catch_up = max(1, int(MAX_CATCH_UP_S / period))
        self._frames = {setup.name: setup.frames for setup in setups}
        self._task = ""
        self._order = ChunkOrder()
        self._clock = ClockWatch(timeouts.clock_jump)
        self._policies = PublisherWatch()
        self._grid_ns: int | None = None

    def restart(self) -> None:
        """Begin to publish, perhaps again: every target starts where its arm is found."""
        self._grid_ns = None
        for arm in self.arms.values():
            arm.restart()

    # The policy.

    def on_chunk(self, chunk: Chunk, now_ns: int) -> None:
        """Execute a chunk from now on. ChunkRefused, counted and remembered, if it breaks a rule."""
        try:
            check_content(chunk, self._frames, self._limits)
            check_timing(chunk, now_ns, self._timeouts.max_observation_age)
            self._check_task(chunk)
            for steps in chunk.arms:
                self.arms[steps.arm].check_takes_chunks()
            self._order.check(chunk)
            anchors = [self.arms[steps.arm].anchor(chunk.observation_ns) for steps in chunk.arms]
        except ChunkRefused as refused:
            self.counters["chunks_refused"] += 1
            self.counters[f"refused_{refused.refusal.value}"] += 1
            self.last_refusal = f"chunk {chunk.sequence}: {refused}"
            raise
        self._order.accept(chunk)
        self.counters["chunks_accepted"] += 1
        for steps, anchor in zip(chunk.arms, anchors, strict=True):
            self.arms[steps.arm].execute(chunk, steps, anchor, now_ns)

    def on_task(self, instruction: str) -> None:
        """The instruction being run, "" for none. A change drops what was meant for another one."""
        if instruction == self._task:
            return
        self._task = instruction
        self._order.new_run()
        for arm in self.arms.values():
            arm.drop_rows(f"task changed to '{instruction}': holding" if instruction else "no task: holding")

    def on_policies(self, publishers: frozenset[bytes]) -> None:
        """Who publishes chunks, as the graph has it now."""
        came, all_gone = self._policies.update(publishers)
        if came:
            self._order.new_run()
        if all_gone:
            for arm in self.arms.values():
                arm.policy_died("the policy died: nobody publishes chunks any more")

    def _check_task(self, chunk: Chunk) -> None:
        if chunk.instruction != self._task:
            now = f"the task is '{self._task}'" if self._task else "no task is set"
            raise ChunkRefused(Refusal.WRONG_TASK, f"the chunk is for '{chunk.instruction}', {now}")

    # The operator.

    def on_teleop(self, step: TeleopStep, now_ns: int) -> None:
        """Move its goal by `step` if the arm is the teleoperator's. RequestRefused, remembered, if it must not."""
        try:
            if step.arm not in self.arms:
                raise RequestRefused(self._unknown(step.arm))
            self.arms[step.arm].on_teleop(step, now_ns)
        except RequestRefused as refused:
            self.last_refusal = f"teleop_command: {refused}"
            raise

    def set_mode(self, arm: str, mode: int, now_ns: int) -> None:
        """Hand one arm, or with "" every arm, to a mode. RequestRefused, and none changes, if one of them cannot."""
        if mode not in frozenset(Mode):
            raise RequestRefused(f"mode {mode} does not exist (0 .. {max(Mode)})")
        arms = self._named(arm)
        for each in arms:
            each.check_mode(Mode(mode), now_ns)
        for each in arms:
            if mode == Mode.POLICY and each.mode is not Mode.POLICY:
                self._order.new_run()
            each.set_mode(Mode(mode), now_ns)

    def emergency_stop(self, reason: str) -> None:
        """Every arm, latched."""
        for arm in self.arms.values():
            arm.emergency_stop(reason)

    def release_emergency_stop(self) -> None:
        """Every arm that is in an emergency stop. RequestRefused if none is, or one is still moving."""
        stopped = [arm for arm in self.arms.values() if arm.mode is Mode.EMERGENCY_STOP]
        if not stopped:
            raise RequestRefused("there is no emergency stop to release")
        if not all(arm.at_rest for arm in stopped):
            raise RequestRefused("still stopping")
        for arm in stopped:
            arm.release_emergency_stop()

    def hold(self, reason: str) -> None:
        """Stop and hold every arm."""
        for arm in self.arms.values():
            arm.hold(reason)

    @property
    def at_rest(self) -> bool:
        """No target moves."""
        return all(arm.at_rest for arm in self.arms.values())

    def _named(self, name: str) -> list[Arm]:
        if name == "":
            return list(self.arms.values())
        if name not in self.arms:
            raise RequestRefused(self._unknown(name))
        return [self.arms[name]]

    def _unknown(self, name: str) -> str:
        return f"arm '{name}' is not one of {', '.join(sorted(self.arms))}"

    # The clock.

    def advance(self, now_ns: int, steady_ns: int) -> list[Target]:
        """The targets that are due, oldest first; called once a period.

        `now_ns` is 0 before the ROS clock has begun; `steady_ns` is of a clock that runs in real time and is never set.
        """
        if now_ns <= 0:
            return []
        jumped = self._clock.complaint(now_ns, steady_ns)
        if jumped:
            self._order.clock_jumped()
            for arm in self.arms.values():
                arm.on_clock_jump(now_ns, jumped)
        targets = []
        for stamp_ns in self._due(now_ns, restart=bool(jumped)):
            for name, arm in self.arms.items():
                pose = arm.tick(stamp_ns)
                if pose is not None:
                    targets.append(Target(name, stamp_ns, pose))
        return targets

    def _due(self, now_ns: int, restart: bool) -> list[int]:
        """The points of the time grid since the last look."""
        if self._grid_ns is None or restart:
            self._grid_ns = now_ns
            return [now_ns]
        # Rounded, so that looks that come a little early or late find one point each and not none and two.
        due = (now_ns - self._grid_ns + self._period_ns // 2) // self._period_ns
        if due > self._max_catch_up:
            self.counters["periods_skipped"] += due - self._max_catch_up
            self._grid_ns += (due - self._max_catch_up) * self._period_ns
            due = self._max_catch_up
        stamps = [self._grid_ns + (i + 1) * self._period_ns for i in range(due)]
        self._grid_ns += due * self._period_ns
        return stamps
