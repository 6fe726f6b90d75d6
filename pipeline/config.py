"""The one config tree: strict, frozen, and small enough to read. YAML < environment < command line.

It travels inside checkpoints, MLflow runs and registered models. Importing it costs no torch, ray or mlflow.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from kernels_bank.distinct import distinct
from kernels_bank.names import Reduction
from pipeline.frozen import Frozen
from pipeline.model_config import ModelConfig
from pipeline.names import Alias, Experiment, ModelName

Share = Annotated[float, Field(ge=0, le=1)]
# Number formats of convolutions; `auto` takes the faster one, as measured on the device that computes them.
Format = Literal["float32", "bf16"]
Precision = Literal["auto", "float32", "bf16"]
JpegQuality = Annotated[int, Field(ge=1, le=100)]
Sigma = Annotated[float, Field(ge=0, le=1, description="noise level on the [0, 1] scale: 2.55/255 is 0.01")]

# Marks the settings that may change when a run is resumed, since they do not affect what is learned. Shards and bank
# may only move: their digests are compared.
MAY_CHANGE: dict[str, JsonValue] = {"mayChange": True}


class CameraConfig(Frozen):
    """Say what happens to pictures beside blur, decimation and white noise; each share is of the samples."""

    reductions: dict[Reduction, Share] = Field(
        {"direct": 1.0}, min_length=1, description="how the picture becomes small, with shares of sum 1"
    )
    centred: Share = Field(0.5, description="LR pixels in the middle of their blocks instead of the corner")
    shot: Share = Field(0.0, description="noise that grows with the light")
    linear: Share = Field(0.0, description="blurred and reduced in linear light")
    rounded: Share = Field(1.0, description="stored in 8 bit; a JPEG always is")
    jpeg: Share = Field(0.0, description="stored as JPEG")
    jpeg_quality: tuple[JpegQuality, JpegQuality] = Field((60, 98), description="drawn evenly between these")
    jpeg_twice: Share = Field(0.0, description="of the JPEGs: stored before as another JPEG, with another grid")
    level_error: float = Field(
        0.0, ge=0, le=1, description="the told noise level is off by a factor of this standard deviation, natural log"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> CameraConfig:
        if abs(sum(self.reductions.values()) - 1) > 1e-6:
            raise ValueError(f"reductions: the shares add up to {sum(self.reductions.values()):g}, not 1")
        if self.jpeg_quality[0] > self.jpeg_quality[1]:
            raise ValueError(f"jpeg_quality {list(self.jpeg_quality)}: the lower bound comes first")
        return self


class ShardSetConfig(Frozen):
    """Name one of several shard sets."""

    uri: str
    weight: float = Field(1.0, gt=0, le=1000, description="how often an epoch shows each of its tiles")


class DataConfig(Frozen):
    """Say where samples come from and how they are degraded."""

    shards: str | tuple[ShardSetConfig, ...] = Field(
        description="URI of a shard set made by jobs/shard_images.py, or a list of {uri, weight}",
        json_schema_extra=MAY_CHANGE,
    )
    bank: str = Field(
        description="URI of a kernel bank made by jobs/build_kernel_bank.py", json_schema_extra=MAY_CHANGE
    )
    patch: int = Field(96, ge=16, description="HR patch side in pixels")
    patches_per_tile: int = Field(8, ge=1, description="crops taken from each decoded tile an epoch")
    shards_per_window: int = Field(2, ge=1, description="shards mixed by one data task")
    kernel_source: Literal["bank", "online"] = Field(
        "bank", description="online: a new Gaussian for every sample, from the law in the bank's spec"
    )
    sigma: tuple[Sigma, Sigma] = Field(
        (0.0, 0.0), description="noise level drawn uniformly between these, [0, 1] scale"
    )
    noise_free: float = Field(0.0, ge=0, le=1, description="share of samples without noise")
    lr_quantize: Literal["none", "round", "floor"] = "none"
    camera: CameraConfig | None = Field(
        None, description="what else happens to the pictures; `lr_quantize` then has no say"
    )
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the training tiles that may be damaged before the run stops",
        json_schema_extra=MAY_CHANGE,
    )
    task_cpus: float = Field(
        1.0, gt=0, description="logical CPUs a data task reserves; it keeps one core busy", json_schema_extra=MAY_CHANGE
    )

    @property
    def shard_sets(self) -> tuple[ShardSetConfig, ...]:
        """Return the shard sets, one or several."""
        return (ShardSetConfig(uri=self.shards),) if isinstance(self.shards, str) else self.shards

    @field_validator("shards", mode="before")
    @classmethod
    def _sets_by_uri(cls, value: object) -> object:
        """Accept a set that is given by its URI alone."""
        if not isinstance(value, (list, tuple)):
            return value
        if not value:
            raise ValueError("is empty; name a shard set")
        if len(value) == 1 and isinstance(value[0], str):
            return value[0]
        return [{"uri": one} if isinstance(one, str) else one for one in value]

    @model_validator(mode="after")
    def _sets_differ(self) -> DataConfig:
        uris = [one.uri for one in self.shard_sets]
        if twice := [uri for uri in uris if uris.count(uri) > 1]:
            raise ValueError(f"shards: {twice[0]} is there twice; give it once, with a weight")
        return self

    @model_validator(mode="after")
    def _sigma_ordered(self) -> DataConfig:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma {list(self.sigma)}: the lower bound comes first")
        return self


class LossConfig(Frozen):
    """Weigh the loss terms; L1 on the image has weight 1."""

    code: float = Field(0.1, ge=0, description="L1 on the standardised kernel code, mean over rounds")
    kernel: float = Field(0.0, ge=0, description="sum of |k' - k| over the decoded kernel, mean over rounds")
    inverse: float = Field(
        0.0, ge=0, description="learn 'spectral' only: dB lost by inverting with the estimate, mean over the batch"
    )
    consistency: float = Field(0.0, ge=0, description="L1 between the re-degraded result and the LR image")
    image_rounds: Literal["none", "last", "all"] = Field(
        "last", description="rounds whose image is supervised; none: codes alone, of a restorer that learns nothing"
    )


class TrainConfig(Frozen):
    """Set the optimisation and its workers."""

    steps: int = Field(ge=1, description="optimizer steps; the run ends here", json_schema_extra=MAY_CHANGE)
    batch_size: int = Field(16, ge=1, description="global: the same at any number of workers")
    micro_batch: int | None = Field(
        None, ge=1, description="images of one forward of a worker; default: all of them", json_schema_extra=MAY_CHANGE
    )
    workers: int = Field(1, ge=1, description="training processes", json_schema_extra=MAY_CHANGE)
    min_workers: int | None = Field(
        None,
        ge=1,
        description="go on with as few as this when a node leaves; default: all",
        json_schema_extra=MAY_CHANGE,
    )
    cpus_per_worker: float = Field(
        1.0, gt=0, description="logical CPUs a worker reserves; data tasks need the rest", json_schema_extra=MAY_CHANGE
    )
    gpu: bool = Field(False, description="one CUDA card a worker, nccl instead of gloo", json_schema_extra=MAY_CHANGE)
    precision: Format = Field("float32", description="of the convolutions; FFTs stay float32")
    tf32: bool = Field(True, description="TensorFloat-32 for float32 products on CUDA cards that have it")
    start_from: str | None = Field(
        None,
        description="weights a new run starts from: a model folder, models:/..., or a USRNet .pth (restorer only)",
        json_schema_extra=MAY_CHANGE,
    )
    start_parts: Literal["all", "restorer"] = Field("all", description="of `start_from`: which parts are taken")
    learn: Literal["all", "restorer", "kernel", "spectral"] = Field(
        "all", description="what is trained; restorer: with true kernels; spectral: the initial kernel alone"
    )
    smallest_window: int | None = Field(
        None, ge=16, description="learn 'spectral': LR images are cut to a random side from this up to their own"
    )
    loss: LossConfig = LossConfig()
    learning_rate: float = Field(2e-4, gt=0, description="of the restorer")
    kernel_learning_rate: float = Field(2e-4, gt=0, description="of the estimator and the initial kernel's net")
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "halving"] = Field(
        "cosine", description="cosine: down to a twentieth; halving: x 1/2 at each of `halve_at`"
    )
    halve_at: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(distinct)] = Field(
        (), description="steps of the schedule 'halving'"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    ema_decay: float = Field(0.999, ge=0, lt=1)
    checkpoint_every: int = Field(500, ge=1, description="steps", json_schema_extra=MAY_CHANGE)
    checkpoint_minutes: float | None = Field(
        None, gt=0, description="a checkpoint also after this long without one", json_schema_extra=MAY_CHANGE
    )
    validate_every: int = Field(
        500, ge=1, description="steps; needs a validation split in the shards", json_schema_extra=MAY_CHANGE
    )
    validation_tiles: int = Field(
        32, ge=1, description="held-out tiles that a validation restores", json_schema_extra=MAY_CHANGE
    )
    log_every: int = Field(20, ge=1, description="steps", json_schema_extra=MAY_CHANGE)
    image_every: int = Field(
        500, ge=1, description="steps between pictures in the tracking run", json_schema_extra=MAY_CHANGE
    )
    max_failures: int = Field(
        3, ge=0, description="worker losses survived before the run fails", json_schema_extra=MAY_CHANGE
    )
    deterministic: bool = False

    @property
    def fewest_workers(self) -> int:
        """Return the smallest number of workers that the run can continue with."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.fewest_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        for count in range(self.fewest_workers, self.workers + 1):
            if self.batch_size % count:
                raise ValueError(
                    f"batch_size {self.batch_size} does not split over {count} workers; make it a multiple"
                )
        if (self.schedule == "halving") != bool(self.halve_at):
            raise ValueError("halve_at belongs to schedule 'halving', and the schedule needs it")
        return self


class TrackingConfig(Frozen):
    """Say where the run is recorded. The server is MLFLOW_TRACKING_URI's, else an SQLite file under `output`."""

    experiment: Experiment = "blind-sr"
    model_name: ModelName | None = Field(None, description="name in the registry; none: the result is not registered")
    alias: Alias = Field("candidate", description="alias the new version gets")


class RunConfig(Frozen):
    """Describe a whole training run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="running the same name again resumes it"
    )
    output: str = Field(
        "runs", description="URI under which checkpoints and pictures of the run are kept", json_schema_extra=MAY_CHANGE
    )
    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig
    tracking: TrackingConfig = Field(TrackingConfig(), json_schema_extra=MAY_CHANGE)

    @model_validator(mode="after")
    def _patch_fits_scales(self) -> RunConfig:
        for scale in self.model.scales:
            if self.data.patch % scale:
                raise ValueError(
                    f"data.patch {self.data.patch} is not a multiple of scale {scale} in model.scales; "
                    "use a common multiple such as 96"
                )
        return self

    @model_validator(mode="after")
    def _cameras_fit(self) -> RunConfig:
        camera, learn = self.data.camera, self.train.learn
        if camera is None or learn == "restorer":
            return self
        if camera.centred:
            raise ValueError(
                f"data.camera.centred {camera.centred:g} with train.learn '{learn}': where pixels lie in their blocks "
                "cannot be seen, so kernels are learned on one grid; set it to 0"
            )
        if set(camera.reductions) != {"direct"} and self.train.loss.code:
            raise ValueError(
                f"train.loss.code with data.camera.reductions {sorted(camera.reductions)}: the code is that of a blur "
                "without its reduction; set train.loss.code to 0 and train.loss.kernel or inverse above"
            )
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> RunConfig:
        """Refuse a setting that the others make meaningless, unless it has its default."""
        kernel, train, loss = self.model.kernel, self.train, self.train.loss
        alternates, codes_alone = train.learn in ("all", "kernel"), loss.image_rounds == "none"
        for given, name, needs in (
            (kernel.warm_start and kernel.schedule != "rounds", "model.kernel.warm_start", "schedule 'rounds'"),
            (kernel.reductions and kernel.initial != "spectral", "model.kernel.reductions", "initial 'spectral'"),
            (train.smallest_window and train.learn != "spectral", "train.smallest_window", "train.learn 'spectral'"),
            (loss.inverse and train.learn != "spectral", "train.loss.inverse", "train.learn 'spectral'"),
            (loss.kernel and train.learn == "restorer", "train.loss.kernel", "train.learn other than 'restorer'"),
            (loss.consistency and not alternates, "train.loss.consistency", "train.learn 'all' or 'kernel'"),
            (loss.image_rounds == "all" and not alternates, "train.loss.image_rounds", "train.learn 'all' or 'kernel'"),
            (codes_alone and train.learn != "kernel", "train.loss.image_rounds 'none'", "train.learn 'kernel'"),
            (codes_alone and not kernel.rounds, "train.loss.image_rounds 'none'", "model.kernel.rounds above 0"),
            (codes_alone and loss.consistency, "train.loss.consistency", "train.loss.image_rounds 'last' or 'all'"),
            (train.start_parts != "all" and train.start_from is None, "train.start_parts", "train.start_from"),
        ):
            if given:
                raise ValueError(f"{name} has no effect without {needs}; leave it out")
        return self

    @model_validator(mode="after")
    def _learns_something(self) -> RunConfig:
        if self.train.learn == "spectral" and self.model.kernel.initial != "spectral":
            raise ValueError(
                f"train.learn 'spectral' with model.kernel.initial '{self.model.kernel.initial}' trains nothing; "
                "set model.kernel.initial to spectral"
            )
        if self.train.loss.image_rounds == "none" and not (self.train.loss.code or self.train.loss.kernel):
            raise ValueError("train.loss.image_rounds 'none' needs train.loss.code or kernel above 0")
        if self.train.learn == "spectral" and not any(
            (self.train.loss.code, self.train.loss.kernel, self.train.loss.inverse)
        ):
            raise ValueError("train.learn 'spectral' needs train.loss.code, kernel or inverse above 0")
        return self
