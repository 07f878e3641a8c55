"""The policy: pictures and an instruction in, reasoning and a chunk of actions out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_policy.actions import ActionStatistics, encode_bins
from molmoact_policy.checkpoint import CONFIG, locate, read_config
from molmoact_policy.config import MolmoActConfig
from molmoact_policy.decoding import Decoded, Decoder
from molmoact_policy.depth import DepthVQVAE, to_grey
from molmoact_policy.drafts import Drafts
from molmoact_policy.embodiment import EMBODIMENT_FILE, ROW, Embodiment
from molmoact_policy.errors import CheckpointError, ObservationError, ReplyError
from molmoact_policy.grammar import Choice, Grammar
from molmoact_policy.images import PREPROCESSOR_CONFIG, check_rgb
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.perception import Perception
from molmoact_policy.processor import IMAGE_TOKENS, TOKENIZER_FILE, Processor
from molmoact_policy.prompts import reasoning_prompt, steering_prompt
from molmoact_policy.quantization import quantize
from molmoact_policy.reply import HIGHEST_BIN, MAX_TRACE_POINTS, TRACE_RANGE, parse_reply
from molmoact_policy.reuse import KeptReasoning, Shown
from molmoact_policy.tokenizer import DEPTH_TOKENS
from molmoact_policy.trace import draw_trace

DEPTH_DIRECTORY = "depth_vqvae"

# Per arm. The release's limit for its multi-view checkpoints; a reply with 8 rows takes about 430 Qwen tokens.
MAX_NEW_TOKENS = 512
MAX_INSTRUCTION_LENGTH = 500

# How replies are decoded: only what the grammar of replies allows; greedily, whatever comes; or, slowly, by
# transformers' own loop, which is what the first two are measured against.
DECODERS = ("strict", "free", "generate")


@dataclass(frozen=True)
class Observation:
    """What the policy is shown.

    images: uint8 RGB [H, W, 3], one per camera in the checkpoint's order; instruction: the task in words; trace: two to
    five points (x, y) in 0..255 across and down the first image that the arm shall follow, or None to let it decide;
    executing: [k, D] in the dataset's units, the first rows of the reply, because they run whatever it says (strict
    decoder only).
    """

    images: Sequence[NDArray[np.uint8]]
    instruction: str
    trace: Sequence[tuple[int, int]] | None = None
    executing: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Prediction:
    """What the policy thought and wants to do. Steered replies hold no depth codes and repeat the given trace."""

    depth_codes: list[int]  # [100], row by row, 10 x 10
    trace: list[tuple[int, int]]  # 1 to 5 points in 0..255 across and down the first image
    actions: NDArray[np.float64]  # [N, D] in the dataset's units; embodiment.py turns them into metres and radians
    text: str
    token_ids: list[int]  # as generated, EOS included
    latency: float  # s, from observation to prediction
    forward_passes: int  # of the language model, the prefill included
    reused: bool = False  # depth codes and trace are those of an earlier reply


class Policy:
    """A checkpoint, ready to act. Use `Policy.from_pretrained`. Not thread-safe: one observation at a time."""

    def __init__(
        self,
        model: MolmoActForActionReasoning,
        processor: Processor,
        statistics: ActionStatistics,
        *,
        depth_vqvae: DepthVQVAE | None = None,
        embodiment: Embodiment | None = None,
        decoder: str = "strict",
        reuse_threshold: float | None = None,
    ) -> None:
        """decoder: one of DECODERS. reuse_threshold: the largest change of the pictures at which depth and trace are
        not thought out again (see KeptReasoning), None to always do; strict decoder only.

        Raises ValueError for another, and CheckpointError for a tokenizer whose replies are no regular language.
        """
        if decoder not in DECODERS:
            raise ValueError(f"decoder is {decoder!r} ({', '.join(DECODERS)})")
        if reuse_threshold is not None and decoder != "strict":
            raise ValueError(f"reuse_threshold needs the decoder 'strict', this is {decoder!r}")
        self.model = model
        self.processor = processor
        self.statistics = statistics
        self.depth_vqvae = depth_vqvae
        self.embodiment = embodiment
        self.decoder = decoder
        self._engine = None if decoder == "generate" else _Engine(self, reuse_threshold)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        unnorm_key: str | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        variant: str | None = None,
        depth_vqvae: str | Path | None = None,
        embodiments: str | Path | None = None,
        decoder: str = "strict",
        reuse_threshold: float | None = None,
        quantization: str = "none",
    ) -> Policy:
        """A checkpoint in the official layout (a directory, or a hub repository in the local cache), checked first.

        unnorm_key: which of the checkpoint's statistics apply; None when it has one. device "auto": the GPU if there is
        one. dtype "auto": as stored, but float32 on a CPU, where bfloat16 is no faster for a few positions and makes
        ties that every decoder breaks its own way. variant: see MolmoActForActionReasoning.from_pretrained.
        depth_vqvae: a directory or weight file that decodes depth codes, when the checkpoint has no depth_vqvae/ of its
        own. embodiments: a file with conventions by unnorm_key, when the checkpoint has no embodiment.yaml; without
        either `embodiment` is None. decoder, reuse_threshold: see Policy. quantization: see `quantize`. Raises
        CheckpointError naming the file, tensor, key or size at fault, and EmbodimentError for a file of conventions.
        """
        directory = locate(directory)
        config = read_config(directory)
        statistics = read_statistics(directory, config, unnorm_key)
        embodiment = _embodiment(directory, embodiments, statistics)
        processor = Processor.from_pretrained(directory)
        check_fit(directory, config, processor)
        vqvae = _depth_vqvae(directory, depth_vqvae)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto" and torch.device(device).type == "cpu":
            dtype = torch.float32
        model = MolmoActForActionReasoning.from_pretrained(
            directory, config=config, dtype=dtype, device=device, variant=variant
        )
        quantize(model, quantization)
        return cls(
            model,
            processor,
            statistics,
            depth_vqvae=vqvae,
            embodiment=embodiment,
            decoder=decoder,
            reuse_threshold=reuse_threshold,
        )

    @torch.inference_mode()
    def act(self, observation: Observation, should_stop: Callable[[], bool] | None = None) -> Prediction:
        """One reply, decoded greedily.

        should_stop: asked before every pass of the language model (not by the decoder "generate"). Raises
        ObservationError before the model runs; ReplyError, with the parts that do parse, when the reply is not complete
        and well-formed, which of a strict decoder it is unless the context is too short; and Interrupted.
        """
        started = time.perf_counter()
        request = self._prepare(observation)
        reply = self._generate(request) if self._engine is None else self._engine.reply(request, should_stop)
        return self._read(reply, observation, started)

    def forget(self) -> None:
        """Begins anew: the next reply owes nothing to those before, neither its reasoning nor its speed."""
        if self._engine is not None:
            self._engine.forget()

    def _generate(self, request: _Request) -> _Reply:
        """By transformers' own loop, with a pass for every token."""
        # Several views go in as one numbered group; a single picture as the pretraining checkpoints saw it.
        inputs = self.processor(request.images, request.prompt)
        prompt_length = inputs["input_ids"].shape[1]
        output = self.model.generate(
            **{name: tensor.to(self.model.device) for name, tensor in inputs.items()},
            max_new_tokens=self.room(prompt_length),
            do_sample=False,
            eos_token_id=self.processor.eos_id,
            pad_token_id=self.processor.pad_id,
        )
        token_ids = output[0, prompt_length:].tolist()
        return _Reply(Decoded(token_ids, len(token_ids)))

    def room(self, prompt_length: int) -> int:
        """How many tokens a reply may have: a strict one, which ends by itself, all that the context has left. Raises
        ObservationError when the prompt alone is too long.
        """
        context = self.model.config.llm_config.max_position_embeddings
        if prompt_length >= context:
            raise ObservationError(f"prompt of {prompt_length} tokens does not fit the context of {context}")
        left = context - prompt_length
        return left if self.decoder == "strict" else min(MAX_NEW_TOKENS * self.statistics.dimensions // ROW, left)

    def decode_depth(self, codes: Sequence[int]) -> NDArray[np.uint8] | None:
        """Depth codes as a picture, uint8 [H, W], near is bright; None when the checkpoint has no depth VQVAE."""
        if self.depth_vqvae is None:
            return None
        with torch.inference_mode():
            decoded = self.depth_vqvae.decode(torch.tensor([list(codes)]))
        return to_grey(decoded[0, 0])

    def _prepare(self, observation: Observation) -> _Request:
        """Pictures as the model shall see them, and the question. Raises ObservationError."""
        images = list(observation.images)
        executing = self._bins(observation.executing)
        self._check_instruction(observation.instruction)
        self._check_images(images)
        if self.embodiment is not None:
            images = [self.embodiment.picture(image) for image in images]
        arms = self.statistics.dimensions // ROW
        if observation.trace is None:
            return _Request(images, reasoning_prompt(observation.instruction, len(images), arms), False, executing)
        check_trace(observation.trace)
        images[0] = draw_trace(images[0], observation.trace)
        return _Request(images, steering_prompt(observation.instruction, len(images), arms), True, executing)

    def _bins(self, executing: NDArray[np.float64] | None) -> NDArray[np.int64]:
        """Rows that run already, [k, D], as the reply says them. Raises ObservationError."""
        dimensions = self.statistics.dimensions
        if executing is None:
            return np.zeros((0, dimensions), np.int64)
        if self.decoder != "strict":
            raise ObservationError(f"executing: rows are given to the decoder 'strict' only, this is {self.decoder!r}")
        rows = np.asarray(executing, np.float64)
        if rows.ndim != 2 or rows.shape[1] != dimensions or not np.isfinite(rows).all():
            raise ObservationError(f"executing: {list(rows.shape)}, expected finite rows of {dimensions} values")
        return np.minimum(encode_bins(self.statistics.normalise(rows)), HIGHEST_BIN)

    def _check_instruction(self, instruction: str) -> None:
        if not instruction.strip():
            raise ObservationError("instruction: is empty")
        if len(instruction) > MAX_INSTRUCTION_LENGTH:
            raise ObservationError(f"instruction: {len(instruction)} characters, at most {MAX_INSTRUCTION_LENGTH}")
        reserved = {*IMAGE_TOKENS, *DEPTH_TOKENS, *self.processor.tokenizer.all_special_tokens}
        found = sorted(token for token in reserved if token in instruction)
        if found:
            raise ObservationError(f"instruction: holds the reserved tokens {', '.join(found)}")

    def _check_images(self, images: list[NDArray[np.uint8]]) -> None:
        if not images:
            raise ObservationError("images: none given")
        cameras = self.embodiment.cameras if self.embodiment is not None else ()
        if cameras and len(images) != len(cameras):
            raise ObservationError(f"images: {len(images)} given, expected {len(cameras)} ({', '.join(cameras)})")
        for index, image in enumerate(images):
            check_rgb(image, f"{cameras[index]} image" if cameras else f"image {index}")

    def _read(self, said: _Reply, observation: Observation, started: float) -> Prediction:
        token_ids = said.decoded.ids
        text = self.processor.decode(token_ids)
        steered = observation.trace is not None
        given = [(int(x), int(y)) for x, y in observation.trace or ()]
        try:
            rows = self.embodiment.rows if self.embodiment is not None else None
            reply = parse_reply(text, self.statistics, steered=steered, rows=rows)
            if token_ids[-1] != self.processor.eos_id:
                raise ReplyError(f"reply: no end after {len(token_ids)} tokens", text, reply.depth_codes, reply.trace)
        except ReplyError as error:
            error.trace = given if steered else error.trace
            raise
        return Prediction(
            depth_codes=reply.depth_codes or [],
            trace=reply.trace or given,
            actions=reply.actions,
            text=text,
            token_ids=token_ids,
            latency=time.perf_counter() - started,
            forward_passes=said.decoded.passes,
            reused=said.reused,
        )


@dataclass(frozen=True)
class _Request:
    """What the model is asked, and the bins [k, D] with which its action rows begin."""

    images: list[NDArray[np.uint8]]
    prompt: str
    steered: bool
    executing: NDArray[np.int64]


@dataclass(frozen=True)
class _Reply:
    decoded: Decoded
    reused: bool = False


class _Engine:
    """What the decoders "strict" and "free" need beside the model: a grammar and drafts for both kinds of reply."""

    def __init__(self, policy: Policy, reuse_threshold: float | None) -> None:
        self._policy = policy
        self._reuse_threshold = reuse_threshold
        self._perception = Perception(policy.model, policy.processor)
        strict = policy.decoder == "strict"
        self._decoder = Decoder(policy.model, policy.processor.eos_id, strict=strict)
        dimensions = policy.statistics.dimensions
        rows = policy.embodiment.rows if policy.embodiment is not None else None
        self._grammars = [
            Grammar(policy.processor, dimensions, rows=rows, steered=steered) for steered in (False, True)
        ]
        self.forget()

    def forget(self) -> None:
        self._drafts = [Drafts(grammar) for grammar in self._grammars]
        self._kept: KeptReasoning | None = None
        if self._reuse_threshold is not None:
            self._kept = KeptReasoning(self._grammars[False], self._reuse_threshold)

    def reply(self, request: _Request, should_stop: Callable[[], bool] | None) -> _Reply:
        grammar, drafts = self._grammars[request.steered], self._drafts[request.steered]
        reasoning: dict[int, Choice] = {}
        kept = None if request.steered else self._kept  # a steered reply has neither depth nor trace
        if kept is not None:
            shown = Shown.of(request.images, request.prompt)
            reasoning = kept.recall(shown)
        prefix = self._perception.prefix(request.images, request.prompt)
        room = self._policy.room(len(prefix.signature))
        given = reasoning | grammar.first_rows(request.executing)
        decoded = self._decoder.decode(prefix, grammar, drafts.choices(), room, should_stop, given)
        said = grammar.read(decoded.ids)
        if said is not None:
            drafts.learn(said)
            if kept is not None and not reasoning:
                kept.keep(shown, said)
        return _Reply(decoded, bool(reasoning))


def check_trace(trace: Sequence[tuple[int, int]]) -> None:
    """Raises ObservationError unless the trace is two to five points in 0..255."""
    if not 2 <= len(trace) <= MAX_TRACE_POINTS:
        raise ObservationError(f"trace: {len(trace)} points, expected 2 to {MAX_TRACE_POINTS}")
    for index, point in enumerate(trace):
        if len(point) != 2 or not all(0 <= coordinate <= TRACE_RANGE for coordinate in point):
            raise ObservationError(f"trace: point {index} is {tuple(point)}, expected x and y in 0..{TRACE_RANGE}")


def read_statistics(directory: Path, config: MolmoActConfig, unnorm_key: str | None) -> ActionStatistics:
    """The statistics under a key, None for the only one. Raises CheckpointError when there are none for whole arms."""
    if not config.norm_stats:
        raise CheckpointError(f"checkpoint {directory}: {CONFIG} has no norm_stats, so its actions have no units")
    statistics = ActionStatistics.from_norm_stats(config.norm_stats, unnorm_key)
    if statistics.dimensions % ROW:
        raise CheckpointError(
            f"checkpoint {directory}: norm_stats[{statistics.key!r}] is for {statistics.dimensions} degrees of "
            f"freedom, expected {ROW} per arm"
        )
    return statistics


def _embodiment(directory: Path, others: str | Path | None, statistics: ActionStatistics) -> Embodiment | None:
    """The checkpoint's own conventions, else those in `others`."""
    own = directory / EMBODIMENT_FILE
    path = own if own.is_file() else others
    return None if path is None else Embodiment.from_file(path, statistics.key)


def _depth_vqvae(directory: Path, other: str | Path | None) -> DepthVQVAE | None:
    own = directory / DEPTH_DIRECTORY
    path = own if own.is_dir() else other
    return None if path is None else DepthVQVAE.from_pretrained(path)


def check_fit(directory: Path, config: MolmoActConfig, processor: Processor) -> None:
    """Raises CheckpointError unless tokenizer, image processor and configuration are about the same model."""
    images = processor.image_processor
    expected = {
        f"{TOKENIZER_FILE}: id of <im_patch>": (processor.image_patch_id, config.image_patch_id),
        f"{PREPROCESSOR_CONFIG}: image_patch_size": (images.patch_size, config.vit_config.image_patch_size),
        f"{PREPROCESSOR_CONFIG}: base_image_input_size": (
            [images.crop_size] * 2,
            list(config.vit_config.image_default_input_size),
        ),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise CheckpointError(f"checkpoint {directory}: {name} is {found}, {CONFIG} has {wanted}")
    rows = config.llm_config.vocab_size + config.llm_config.additional_vocab_size
    highest = max(processor.tokenizer.get_vocab().values())
    if highest >= rows:
        raise CheckpointError(
            f"checkpoint {directory}: the tokenizer goes up to id {highest}, {CONFIG} has {rows} embedding rows"
        )
