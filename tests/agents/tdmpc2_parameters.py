"""The parameters of one run of an agent and of its plain version, in one layout, to be compared."""

import torch

NETS = {"encoder": "encoder", "dynamics": "dynamics", "reward_head": "reward", "policy_head": "policy"}


def batched(agent, run, attribute=lambda p: p.data):
    """{network: tensors of one run}, heads of the ensembles one by one."""
    model, k = agent.model, agent.hp.num_q
    nets = [*NETS, "termination_head"] if agent.hp.episodic else NETS
    out = {name: [attribute(p)[run] for p in getattr(model, name).parameters()] for name in nets}
    for ensemble in ("online_q", "target_q"):
        parameters = list(getattr(model, ensemble).parameters())
        for head in range(k):
            out[f"{ensemble}.{head}"] = [attribute(p)[run * k + head] for p in parameters]
    return out


def plain(reference, attribute=None):
    out = {name: getattr(reference, attr).flat(attribute) for name, attr in NETS.items()}
    if reference.hp.episodic:
        out["termination_head"] = reference.termination.flat(attribute)
    for ensemble, nets in (("online_q", reference.q), ("target_q", reference.target_q)):
        for head, net in enumerate(nets):
            out[f"{ensemble}.{head}"] = net.flat(attribute)
    return out


def assert_same(ours, theirs, **tolerance):
    for name, tensors in theirs.items():
        for index, (a, b) in enumerate(zip(ours[name], tensors, strict=True)):
            torch.testing.assert_close(a, b, msg=lambda m, n=name, i=index: f"{n}[{i}]: {m}", **tolerance)
