"""Replaying a session: equal devices agree, and every kind of difference is found and named."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import golden, prompt
from tokenfabric.core.image import PAGE
from tokenfabric.host.session import Sampler, Session
from tokenfabric.host.verify import replay
from tokenfabric.sim.golden import GoldenDevice


def _session(**options):
    """A session of three steps of prefill and five of decode, and a second device."""
    _, cfg, image, device = golden()
    session = Session(device, image, dump=True)
    list(session.generate(prompt(20), 6, **options))
    return session.jobs, image, device, GoldenDevice(cfg, [w.size for w in device.windows])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_two_golden_devices_agree(temperature):
    assert replay(*_session(sampler=Sampler(temperature=temperature))) is None


def test_a_flipped_weight_bit_is_reported():
    _, cfg, image, device = golden()
    session = Session(device, image, dump=True)
    device.windows[0][image.map.stream + 1000] ^= 0x40
    list(session.generate(prompt(20), 3))
    found = replay(session.jobs, image, device, GoldenDevice(cfg, [w.size for w in device.windows]))
    assert found is not None and found.startswith("step 0: the logits of row ")


def test_a_wrong_logit_is_named():
    jobs, image, device, reference = _session()
    jobs[-1].logits[2, 7] += 1
    want = int(jobs[-1].logits[2, 7]) - 1
    text = f"step 4: the logits of row 0 differ first at channel 7: {want + 1} instead of {want}"
    assert replay(jobs, image, device, reference) == text


def test_a_wrong_token_is_named():
    jobs, image, device, reference = _session()
    right = jobs[-1].steps[1].tokens
    jobs[-1].steps[1].tokens = [right[0] ^ 1]
    text = f"step 3: the tokens are [{right[0] ^ 1}] instead of {right}"
    assert replay(jobs, image, device, reference) == text


@pytest.mark.parametrize("index", range(12))
def test_every_part_of_the_cache_is_compared(index):
    jobs, image, device, reference = _session()
    tensors = list(image.kv.tensors())
    assert len(tensors) == 12  # 2 layers, 2 KV heads, K, V and scales
    name, layer, head, at, size = tensors[index]
    device.windows[0][at + 24 * size] ^= 1  # of the last position that was written
    text = f"{name} of layer {layer}, KV head {head}, position 24 differs"
    assert replay(jobs, image, device, reference) == text


def test_positions_that_were_not_written_are_not_compared():
    jobs, image, device, reference = _session()
    for _, _, _, at, size in image.kv.tensors():
        device.windows[0][at + 25 * size] ^= 1
    assert replay(jobs, image, device, reference) is None


def test_a_saturation_count_is_compared():
    jobs, image, device, reference = _session()
    device.saturated[3] += 2
    found = replay(jobs, image, device, reference)
    assert found is not None and found.startswith("saturation counter 3 is ")


def test_a_reference_that_stops_is_reported():
    jobs, image, device, reference = _session()
    image.payload.flags.writeable = True
    program = image.map.program - PAGE
    image.payload[program : program + 32] = np.uint8(255)
    found = replay(jobs, image, device, reference)
    assert found is not None and "step 0: the reference stopped" in found and "ILLEGAL" in found
