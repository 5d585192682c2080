"""A network that FSDP divides between two CPU processes: hashed, saved and loaded as the whole one.

`accelerate` switches FSDP on for GPUs alone, so that the network is divided here by `fully_shard` itself, over gloo.
"""

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, pipeline

from hftransfer.modalities import kind_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import load_checkpoint, save_model
from hftransfer.models.references import ModelConfig
from hftransfer.models.weights import weights_hash
from hftransfer.strategies import FrozenStrategy
from hftransfer.tasks import SingleLabel
from hftransfer.training.freeze_check import FrozenMoved, check_frozen, tensor_hashes
from tests.support import tiny
from tests.support.processes import in_each

TASK = SingleLabel(("a", "b", "c"))
STEPS, ROWS = 4, 8  # rows of all processes together in a step


def divided(model: nn.Module, groups: LayerGroups, size: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    for path in groups.blocks:
        fully_shard(model.get_submodule(path), mesh=mesh)
    return fully_shard(model, mesh=mesh)


def trained(world, checkpoint, folder, how):
    """Hashes before and after some steps of `frozen`; the model is saved into the folder `how`."""
    torch.set_num_threads(1)
    loaded = load_checkpoint(ModelConfig(name=str(checkpoint)), kind_of("text"), TASK)
    groups = LayerGroups.of(loaded.model)
    plan = FrozenStrategy(top=1).prepare(loaded.model.eval(), groups)  # no dropout: the draws would differ
    plan.freeze()
    whole = {"hashes": tensor_hashes(plan.model, groups), "all": weights_hash(plan.model)}
    model = plan.model
    if how == "divided":
        divided(model, groups, world.size)
    elif how == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    assert {"hashes": tensor_hashes(plan.model, groups), "all": weights_hash(plan.model)} == whole
    optimizer = torch.optim.AdamW((p for p in plan.model.parameters() if p.requires_grad), lr=1e-2)
    draws = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        ids, labels = torch.randint(5, 60, (ROWS, 12), generator=draws), torch.randint(0, 3, (ROWS,), generator=draws)
        mine = slice(world.rank, None, world.size)
        model(input_ids=ids[mine], attention_mask=torch.ones_like(ids[mine]), labels=labels[mine]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    check_frozen(plan, whole["hashes"])
    save_model(plan.model, loaded.processor, folder / how)
    return whole["hashes"], tensor_hashes(plan.model, groups)


def moved(world, checkpoint):
    """A frozen tensor of a divided network that moves in one process is an error in each."""
    loaded = load_checkpoint(ModelConfig(name=str(checkpoint)), kind_of("text"), TASK)
    groups = LayerGroups.of(loaded.model)
    plan = FrozenStrategy(top=1).prepare(loaded.model, groups)
    plan.freeze()
    divided(plan.model, groups, world.size)
    before = tensor_hashes(plan.model, groups)
    frozen = next(p for p in plan.model.parameters() if not p.requires_grad)
    with torch.no_grad():
        if world.rank == 1:
            frozen.to_local().add_(1.0)
    try:
        check_frozen(plan, before)
    except FrozenMoved as error:
        return str(error)


def test_a_divided_network_trains_and_is_saved_as_the_whole_one(tmp_path):
    checkpoint = tiny.TEXT_FAMILIES["bert"](tmp_path / "bert")
    found = {how: in_each(trained, checkpoint, tmp_path, how) for how in ("divided", "ddp")}
    for hashes in found.values():
        assert hashes[0] == hashes[1] and not isinstance(hashes[0], Exception), hashes
    before, after = found["divided"][0]
    states = {how: load_file(tmp_path / how / "model.safetensors") for how in found}
    assert states["divided"].keys() == states["ddp"].keys()
    assert all(torch.allclose(states["divided"][name], states["ddp"][name], atol=1e-5) for name in states["ddp"])
    unmoved = {name for name in before if before[name] == after[name]}
    assert 0 < len(unmoved) < len(before)
    start = load_file(checkpoint / "model.safetensors")
    frozen = [name for name in unmoved if name in start and name in states["divided"]]
    assert len(frozen) > 20 and all(torch.equal(states["divided"][name], start[name]) for name in frozen)
    assert AutoConfig.from_pretrained(tmp_path / "divided").architectures == ["BertForSequenceClassification"]
    answer = pipeline("text-classification", str(tmp_path / "divided"))("goal match team", top_k=None)
    assert {row["label"] for row in answer} == set(TASK.names)


def test_a_frozen_tensor_that_moves_in_one_process_is_found_by_all(tmp_path):
    messages = in_each(moved, tiny.TEXT_FAMILIES["bert"](tmp_path / "bert"))
    assert all("found that 1 changed" in message for message in messages), messages
