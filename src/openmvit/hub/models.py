"""The networks as models of transformers: thin classes that call an `MViT` and arrange what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from openmvit.checkpoint import usual_rights
from openmvit.errors import UserError
from openmvit.hub.card import of_weights, write_card
from openmvit.hub.config import MViTV2Config
from openmvit.hub.recording import as_rows, recorded
from openmvit.model import MViT
from openmvit.nn.grid import Tokens

_ALIGNMENT = 64
"""Bytes; what an allocation of torch on a CPU starts at a multiple of."""

_HEAD, _MAY_MISS = "mvitv2.head.", 0.05


@dataclass
class _Run:
    """What one pass through the trunk gave."""

    stages: list[Tokens]
    stem: Tokens | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class MViTV2PreTrainedModel(PreTrainedModel):
    """What the models have in common: the network at `self.mvitv2`, under the same parameter names in each of them.

    Images are `pixel_values` `[B, 3, H, W]`, clips `pixel_values_videos` `[B, T, 3, H, W]`, for which `pixel_values`
    is taken too. `hidden_states` are the tokens `[B, N, C]` before the first and after every block (of a reversible
    network after every stage), the class token first; `attentions` are `[B, heads, queries, keys]` per block.
    """

    config_class = MViTV2Config
    config: MViTV2Config
    base_model_prefix = "mvitv2"
    main_input_name = "pixel_values"
    input_modalities = ["image", "video"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["MultiscaleBlock", "ReversibleBlock", "StageTransition"]  # noqa: RUF012
    accepts_loss_kwargs = False
    mvitv2: MViT

    def __init__(self, config: MViTV2Config, **changes: Any) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.mvitv2 = MViT(config.network(**changes))
        if next(self.mvitv2.parameters()).device.type != "meta":
            for value in self.mvitv2.state_dict(keep_vars=True).values():
                value._is_hf_initialized = True  # type: ignore[assignment] # by the network itself

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, on aligned memory: kernels chosen by alignment would change the last bit of outputs.

        Raises:
            UserError: if more than a twentieth of the trunk is not in the file, such as one with the draft's names.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        trunk = [name for name, _ in model.named_parameters() if not name.startswith(_HEAD)]
        missing = set(report["missing_keys"]) & set(trunk)
        if args and args[0] is not None and len(missing) > _MAY_MISS * len(trunk):
            raise UserError(
                f"{args[0]} lacks {len(missing)} of the {len(trunk)} tensors of the trunk, such as {min(missing)}",
                "Weights of another project become a folder by openmvit.hub.from_checkpoint(FILE, FOLDER)",
            )
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
                tensor.data = tensor.data.clone()
        return (model, report) if output_loading_info else model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Fresh values for what a file lacked, by the published rule of the network."""
        state = self.mvitv2.state_dict(keep_vars=True)
        missing = {name: value for name, value in state.items() if not getattr(value, "_is_hf_initialized", False)}
        fresh = MViT(self.mvitv2.config).state_dict() if missing else {}
        for name, value in missing.items():
            value.copy_(fresh[name])

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.gradient_checkpointing = enable
        self.mvitv2.set_grad_checkpointing(enable or None)

    def get_input_embeddings(self) -> nn.Module:
        return self.mvitv2.patch_embed

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers; a folder without a model card gets one, written from what the configuration knows.

        Args:
            save_directory: folder to write; save the processor there first, so that the card tells of it.
            args, kwargs: as for transformers; of `push_to_hub` only `repo_id` and `token`.
        """
        repository = kwargs.pop("repo_id", None) or Path(save_directory).name
        self.config.about = of_weights(self.config.about, self.state_dict())
        super().save_pretrained(save_directory, *args, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        for file in Path(save_directory).glob("*.safetensors"):
            usual_rights(file)
        if not (Path(save_directory) / "README.md").exists():
            write_card(self.config, save_directory)
        if push_to_hub:
            _upload(Path(save_directory), repository, token=kwargs.get("token"))

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        processor: Any = None,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload weights, configuration and model card, and the processor if one is given; returns the commit's URL.

        Unlike that of transformers it keeps our model card.
        """
        with TemporaryDirectory() as folder:
            if processor is not None:
                processor.save_pretrained(folder)
            self.save_pretrained(folder)
            options = {"commit_message": commit_message, "revision": revision, "create_pr": create_pr}
            return _upload(Path(folder), repo_id, token=token, private=private, **options)

    def _pixels(self, pixel_values: Tensor | None, pixel_values_videos: Tensor | None) -> Tensor:
        """The network's input `[B, C, *size]`."""
        given = [x for x in (pixel_values, pixel_values_videos) if x is not None]
        clips = len(self.config.input_size) == 3
        wanted = "pixel_values_videos [B, T, 3, H, W]" if clips else "pixel_values [B, 3, H, W]"
        if len(given) != 1:
            raise UserError(f"The model got {len(given)} inputs", f"Give {wanted}")
        x = given[0]
        if not clips:
            return x
        if x.dim() != 5 or x.shape[2] != self.config.in_chans:
            raise UserError(f"The model got clips of shape {list(x.shape)}", f"Give {wanted}")
        return x.movedim(1, 2)

    def _run(self, x: Tensor, output_hidden_states: bool | None, output_attentions: bool | None, stem: bool) -> _Run:
        """One pass through the trunk; what is not asked for is not kept."""
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        weights = self.config.output_attentions if output_attentions is None else output_attentions
        with recorded(self.mvitv2, states=bool(states) or stem, attentions=bool(weights)) as kept:
            stages = self.mvitv2.stages(x)
        steps = kept.states if len(kept.states) > 1 else [*kept.states, *stages]
        return _Run(
            stages=stages,
            stem=kept.states[0] if kept.states else None,
            hidden_states=tuple(as_rows(tokens) for tokens in steps) if states else None,
            attentions=tuple(kept.attentions) if weights else None,
        )


def _upload(folder: Path, repo_id: str, *, token: Any, private: bool | None = None, **options: Any) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=name, folder_path=folder, **options))


class MViTV2Model(MViTV2PreTrainedModel):
    """The network without its classifier: tokens and what a classifier would read."""

    _keys_to_ignore_on_load_unexpected = [r"^mvitv2\.head\."]  # noqa: RUF012

    def __init__(self, config: MViTV2Config) -> None:
        super().__init__(config, num_classes=0, drop_rate=0.0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state` `[B, N, C]` after the final norm (`norm_after_pool`: before it), `pooler_output`."""
        pixels = self._pixels(pixel_values, pixel_values_videos)
        run = self._run(pixels, output_hidden_states, output_attentions, stem=False)
        rows = as_rows(run.stages[-1])
        return BaseModelOutputWithPooling(
            last_hidden_state=rows if self.config.norm_after_pool else self.mvitv2.norm(rows),
            pooler_output=self.mvitv2.forward_head(*run.stages[-1]),
            hidden_states=run.hidden_states,
            attentions=run.attentions,
        )


class _Classifier(MViTV2PreTrainedModel):
    """A classifier of either kind."""

    ndim = 2

    def __init__(self, config: MViTV2Config) -> None:
        if len(config.input_size) != self.ndim:
            other = "MViTV2ForVideoClassification" if self.ndim == 2 else "MViTV2ForImageClassification"
            raise UserError(
                f"input_size is {config.input_size} and {type(self).__name__} has {self.ndim} axes", f"Take {other}"
            )
        super().__init__(config)
        self.num_labels = config.num_labels
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Logits `[B, num_labels]`, and with `labels` the loss of `config.problem_type`, as transformers computes it.

        Args:
            labels: int64 `[B]` for one label; float `[B, num_labels]` for several, or for regression.
        """
        pixels = self._pixels(pixel_values, pixel_values_videos)
        run = self._run(pixels, output_hidden_states, output_attentions, stem=False)
        logits = self.mvitv2.forward_head(*run.stages[-1])
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=run.hidden_states,
            attentions=run.attentions,
        )


class MViTV2ForImageClassification(_Classifier):
    """Images `[B, 3, H, W]` -> logits."""


class MViTV2ForVideoClassification(_Classifier):
    """Clips `[B, T, 3, H, W]` -> logits."""

    ndim = 3
    main_input_name = "pixel_values_videos"


class MViTV2Backbone(BackboneMixin, MViTV2PreTrainedModel):
    """Maps `[B, C, *grid]` of the stages that `config.out_features` names, without final norm and class token.

    `AutoBackbone.from_config(config)` gives one with fresh weights, `MViTV2Backbone.from_pretrained(folder)` one with
    those of a folder; `AutoBackbone.from_pretrained` asks the hub whether the folder exists there, and fails.
    """

    _keys_to_ignore_on_load_unexpected = [r"^mvitv2\.(head|norm)\."]  # noqa: RUF012

    def __init__(self, config: MViTV2Config) -> None:
        super().__init__(config, num_classes=0)
        network = self.mvitv2.config
        self.num_features = [network.embed_dim, *network.stage_dims]
        # Never read here, and data-parallel training refuses parameters without gradient.
        self.mvitv2.norm = nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """`feature_maps`, one per name in `config.out_features`."""
        pixels = self._pixels(pixel_values, pixel_values_videos)
        run = self._run(pixels, output_hidden_states, output_attentions, stem="stem" in self.out_features)
        maps = dict(zip(self.stage_names, [run.stem, *run.stages], strict=True))
        chosen: Any = tuple(maps[name] for name in self.out_features)
        feature_maps: Any = tuple(x.movedim(-1, 1) for x, _ in chosen)
        return BackboneOutput(
            feature_maps=feature_maps,
            hidden_states=run.hidden_states,
            attentions=run.attentions,
        )
