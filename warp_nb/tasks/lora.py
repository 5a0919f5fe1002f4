"""A PEFT policy is taken apart: the plain model of theta_sft, and the factors that train some of its matrices.

PEFT itself is imported only where an adapter is loaded from a folder.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from warp_nb.algorithm.merge import wide
from warp_nb.fast.low_rank import Factors, turned
from warp_nb.files import fingerprint, loading, read_record
from warp_nb.paths import expanded

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEYOND_LORA = (
    "use_dora", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters", "lora_bias",
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "alora_invocation_tokens",
    "velora_config",
)  # fmt: skip
"""Settings of PEFT that make a task vector something else than scale * B @ A."""
PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations of PEFT that leave the base's own weights as they are; pissa, olora, loftq and others move them."""
UNLOAD = "pass policy.merge_and_unload().requires_grad_(True), which trains all of its weights"


@dataclass(frozen=True)
class Lora:
    """How a policy is trained by LoRA.

    Args:
        factors: by the name of a linear layer in the plain model, the adapter that θ_sft contains. A run begins with
            its A and with B = 0 beside frozen θ_init, so every task vector is one product scale · B · A.
        config: PEFT's `LoraConfig` of the adapter, for saving one.
    """

    factors: Mapping[str, Factors] = field(repr=False)
    config: Any = field(repr=False)

    @property
    def trained(self) -> int:
        """Number of weights that a run trains."""
        return sum(one.a.numel() + one.b.numel() for one in self.factors.values())

    def identity(self) -> dict[str, Any]:
        """Return what the bits of a run depend on."""
        scales = {name: one.scale for name, one in self.factors.items()}
        return {"scales": scales, "a_sha256": fingerprint({name: one.a for name, one in self.factors.items()})}


def lora_faults(config: Mapping[str, Any]) -> list[str]:
    """Return the settings of a PEFT adapter by which its task vector is not scale * B @ A of the base's own layers."""
    faults = [f"{name}: {config[name]}" for name in BEYOND_LORA if config.get(name)]
    kind = getattr(config.get("peft_type"), "value", config.get("peft_type"))
    faults += [f"peft_type: {kind}"] if kind != "LORA" else []
    faults += [f"bias: {config['bias']}"] if config.get("bias", "none") != "none" else []
    init = config.get("init_lora_weights", True)
    return faults + ([f"init_lora_weights: {init}"] if init not in PLAIN_INIT else [])


def holds_adapters(policy: Any) -> bool:
    """Return whether a policy is a PEFT model or a model with injected adapters."""
    return any(type(module).__module__.partition(".")[0] == "peft" for module in policy.modules())


def take_apart(policy: Any) -> tuple[Any, Lora]:
    """Return θ_sft of a PEFT policy as a plain model, whose adapted weights are merged, and its `Lora`.

    Weights without an adapter, and those whose product is zero, are the policy's own tensors and not copies. Of the
    plain model only the adapted weights have `requires_grad`: those are the weights that move.

    Raises:
        ValueError: it is not plain LoRA with one active adapter on linear layers, or trains other weights too.
    """
    name = type(policy).__name__
    if faults := policy_faults(policy):
        raise ValueError(f"the policy ({name}) is not trained by one plain LoRA adapter: {'; '.join(faults[:5])}")
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    layers = lora_layers(inner)
    factors = {where: factors_of(layer) for where, layer in layers.items()}
    own: dict[int, Any] = {id(value): value for value in inner.parameters()}
    for where, layer in layers.items():
        linear = copy.deepcopy(layer.base_layer, dict(own))
        delta = turned(linear, factors[where].product())
        weight = linear.weight.detach() if not delta.any() else linear.weight.detach() + delta
        linear.weight = torch.nn.Parameter(weight)
        own[id(layer)] = linear
    config = copy.deepcopy(inner.peft_config[active_adapters(inner)[0]])
    found = copy.deepcopy(inner, own)
    del found.peft_config
    found.__dict__.pop("_hf_peft_config_loaded", None)
    return found, Lora(factors, config)


def policy_faults(policy: Any) -> list[str]:
    """Describe why a policy is not trained by one plain LoRA adapter, each with its remedy; empty if it is."""
    configs, active = getattr(policy, "peft_config", {}), active_adapters(policy)
    faults = [fault for config in configs.values() for fault in lora_faults(config.to_dict())]
    if faults:
        return [f"{fault} ({UNLOAD})" for fault in faults]
    if len(active) != 1:
        return [f"active adapters are {active or 'none'}, there must be one; call policy.set_adapter(name)"]
    embeddings = policy.get_input_embeddings()
    for where, layer in lora_layers(policy).items():
        kind, below = f"{type(layer).__module__}.{type(layer).__name__}", layer.get_base_layer()
        if kind != "peft.tuners.lora.layer.Linear" or layer.lora_variant.get(active[0]) or not is_linear(below):
            faults.append(f"{where} is adapted as a {type(below).__name__} by {kind}, only linear layers are taken; "
                          f"leave it out of target_modules")  # fmt: skip
        elif below.weight is getattr(embeddings, "weight", None):
            faults.append(f"{where} is tied to the embedding; leave it out of target_modules")
        elif layer.merged:
            faults.append(f"{where} has its adapter merged; call policy.unmerge_adapter()")
        elif layer.disable_adapters:
            faults.append(f"{where} has its adapter disabled; call policy.base_model.enable_adapter_layers()")
        elif not layer.lora_A[active[0]].weight.any():
            faults.append(f"{where} has a factor A of zeros, so nothing would be trained; initialise it anew")
    trained = [n for n, value in policy.named_parameters() if value.requires_grad and ".lora_" not in n]
    if trained:
        faults.append(f"{trained[0]} is trained beside the adapter; freeze it, or name its layer in target_modules")
    return faults


def lora_layers(policy: Any) -> dict[str, Any]:
    """Return the layers that the active adapter adapts, by name."""
    layers = {name: module for name, module in policy.named_modules() if hasattr(module, "lora_A")}
    return {
        name: module
        for name, module in layers.items()
        if {*module.lora_A, *module.lora_embedding_A} & set(module.active_adapters)
    }


def active_adapters(policy: Any) -> list[str]:
    """Return the names of the active adapters of a policy's layers."""
    layers = [module for module in policy.modules() if hasattr(module, "lora_A")]
    return sorted({name for module in layers for name in module.active_adapters})


def is_linear(layer: Any) -> bool:
    """Return whether a layer is torch's Linear or transformers' Conv1D, in floating point."""
    known = type(layer) is torch.nn.Linear or type(layer).__name__ == "Conv1D"
    return known and layer.weight.is_floating_point()


def factors_of(layer: Any) -> Factors:
    """Return copies of the factors of PEFT's layer, in fp32 or better."""
    (name,) = layer.active_adapters
    a, b = (wide(side[name].weight.detach()).clone() for side in (layer.lora_A, layer.lora_B))
    return Factors(a, b, float(layer.scaling[name]))


def load_adapter(folder: str | Path, base: Any = None) -> Any:
    """Load a PEFT folder as a policy for `Task`, in fp32 and eval mode.

    Args:
        folder: what `save_pretrained` of a PEFT model wrote.
        base: the model that the adapter belongs to; None loads the one that its configuration names.

    Warns if `base` has another name than the adapter's configuration says.

    Raises:
        ValueError: the folder holds no plain LoRA adapter, or one of another base.
        ImportError: peft is not installed.
    """
    folder = expanded(folder)
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}; pass a folder that a PEFT model's save_pretrained wrote"
        )
    config = read_record(folder / ADAPTER_CONFIG)
    if faults := lora_faults(config):
        raise ValueError(
            f"{folder} is no plain LoRA adapter ({'; '.join(faults)}); merge it by PEFT and pass the model"
        )
    with loading(folder / ADAPTER_WEIGHTS, "safetensors"), safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft; install it with pip install 'warp-nb[lora]'") from error
    named = config.get("base_model_name_or_path")
    if base is not None:
        given = base.config._name_or_path
        if named and given and Path(named).name != Path(given).name:
            warnings.warn(f"{folder} was trained on {named}, which may be another model than {given}", stacklevel=2)
    else:
        from transformers import AutoModelForCausalLM

        if not named:
            raise ValueError(f"{folder / ADAPTER_CONFIG} names no base model; pass base=model")
        base = AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32)
    other = f"{folder} is an adapter of another base than {type(base).__name__} {base.config._name_or_path!r}"
    try:
        policy = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except (RuntimeError, ValueError) as error:  # shapes differ; no such layers
        raise ValueError(
            f"{other} ({' '.join(str(error).split())[:200]}); pass the base that it was trained on"
        ) from error
    found = {name: list(value.shape) for name, value in peft.get_peft_model_state_dict(policy).items()}
    if found != shapes:
        strange = sorted(found.keys() ^ shapes.keys())[:5]
        raise ValueError(f"{other} (only one of them has {', '.join(strange)}); pass the base that it was trained on")
    return policy.eval()
