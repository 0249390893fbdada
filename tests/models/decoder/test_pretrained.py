"""The decoder over a Stable Diffusion base: what is read, left out, widened, trained and kept in checkpoints."""

import json
import pickle
import sys
import types
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from aeic_lightning.errors import UserError
from aeic_lightning.models.decoder import OneStepDecoder, PretrainedConfig
from aeic_lightning.models.decoder.stable_diffusion import locate, read_vae_decoder, weights_digest

L_T, L_RES = 12, 8


@pytest.fixture
def decoder(pretrained) -> OneStepDecoder:
    decoder = OneStepDecoder(L_T, L_RES, pretrained)
    decoder.load_base()
    return decoder.eval()


def randomise_lora(decoder: OneStepDecoder) -> None:
    for name, p in decoder.named_parameters():
        if ".lora_" in name and p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)


@pytest.mark.parametrize("size", [(8, 12), (7, 5)])
def test_denoiser_is_stable_diffusion_without_time_and_text(unet, decoder, size):
    """Independent: diffusers' own U-Net whose time and cross-attention add nothing."""
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if ".time_emb_proj." in name or ".attn2.to_out." in name:
                p.zero_()
        z = torch.randn(2, 4, *size)
        expected = unet(z, timestep=3, encoder_hidden_states=torch.randn(2, 5, 8)).sample
        bias = unet.conv_out.bias.view(1, -1, 1, 1)
        # Inputs tiled 3 times and divided by 3 give conv_in's own output; outputs are tiled twice, halved but for bias.
        expected = ((expected - bias) / 2 + bias).repeat(1, 2, 1, 1)
        assert torch.allclose(decoder.denoiser(z.repeat(1, 3, 1, 1)).l_0, expected, atol=1e-4)


def test_vae_decoder_is_widened(vae, decoder):
    with torch.no_grad():
        z = torch.randn(1, 4, 4, 4)
        assert torch.allclose(decoder.vae(z.repeat(1, 2, 1, 1)), vae(z), atol=1e-5)


def test_a_merged_adapter_is_the_same_function_in_fewer_products(decoder):
    randomise_lora(decoder)
    l_T, l_res = torch.randn(1, L_T, 8, 8), torch.randn(1, L_RES, 8, 8)
    kept = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    products = []
    for name, module in decoder.named_modules():
        if ".lora_A." in name or ".lora_B." in name:
            module.register_forward_hook(lambda *_: products.append(1))
    with torch.inference_mode():
        before = decoder(l_T, l_res).x_hat
        assert products
        products.clear()
        decoder.merge_adapter()
        after = decoder(l_T, l_res).x_hat
    assert not products
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    state = decoder.state_dict()
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], kept[name]) for name in kept), "checkpoints stay what they are"


def test_lora_starts_as_nothing_and_alone_is_trained(decoder):
    l_T = torch.randn(1, L_T, 8, 8)
    before = decoder.denoiser(l_T).l_0
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    ends = {f"denoiser.{end}.{p}" for end in ("conv_in", "conv_out") for p in ("weight", "bias")}
    assert {name for name in trained if ".lora_" not in name} == ends
    randomise_lora(decoder)
    assert not torch.allclose(decoder.denoiser(l_T).l_0, before)


def test_adapted_layers_are_those_of_the_paper(decoder):
    """Every linear and convolution of the trunk, but for none."""
    names = {name for name, m in decoder.denoiser.trunk.named_modules() if hasattr(m, "base_layer")}
    plain = {
        name.removesuffix(".base_layer")
        for name, m in decoder.denoiser.trunk.named_modules()
        if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in name
    }
    assert names == plain
    assert {name.split(".")[-1] for name in names} == {
        *("to_q", "to_k", "to_v", "0", "proj_in", "proj_out", "proj", "2", "conv1", "conv2", "conv_shortcut", "conv")
    }


def test_base_stays_in_evaluation_mode_without_gradients(decoder):
    decoder.train()
    assert decoder.training
    assert not decoder.vae.training
    assert not decoder.denoiser.trunk.training
    decoder(torch.randn(1, L_T, 8, 8), torch.randn(1, L_RES, 8, 8)).x_hat.mean().backward()
    assert all((p.grad is None) != p.requires_grad for p in decoder.parameters())


def test_state_dict_holds_what_is_trained(decoder, pretrained):
    randomise_lora(decoder)
    state = decoder.state_dict()
    trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    assert sum(t.numel() for t in state.values()) == trained
    other = OneStepDecoder(L_T, L_RES, pretrained)
    other.load_base()
    other.load_state_dict(state)
    l_T, l_res = torch.randn(1, L_T, 8, 8), torch.randn(1, L_RES, 8, 8)
    assert torch.equal(other.eval()(l_T, l_res).x_hat, decoder(l_T, l_res).x_hat)


def test_decoding_without_the_base_says_so(pretrained):
    decoder = OneStepDecoder(L_T, L_RES, pretrained)
    with pytest.raises(UserError, match="no base weights"):
        decoder(torch.zeros(1, L_T, 8, 8), torch.zeros(1, L_RES, 8, 8))


# ---------------------------------------------------------------------- reading


def reads_the_same(pretrained, unet_name, decoder) -> bool:
    other = OneStepDecoder(L_T, L_RES, replace(pretrained, pretrained=replace(pretrained.pretrained, unet=unet_name)))
    other.load_base()
    ours, theirs = decoder.denoiser.trunk.state_dict(), other.denoiser.trunk.state_dict()
    return all(torch.equal(t, theirs[name]) for name, t in ours.items() if ".lora_" not in name)


def test_shards_and_the_inner_folder(unet, pretrained, decoder, tmp_path):
    unet.save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded" / "unet").glob("*.safetensors"))) > 1
    assert reads_the_same(pretrained, str(tmp_path / "sharded" / "unet"), decoder)


def test_half_precision_edition_has_the_same_digest(unet, pretrained, decoder, tmp_path):
    unet.half().save_pretrained(tmp_path / "half_turbo" / "unet", variant="fp16")
    config = replace(pretrained, pretrained=replace(pretrained.pretrained, unet=str(tmp_path / "half_turbo")))
    other = OneStepDecoder(L_T, L_RES, config)
    other.load_base()
    assert next(other.denoiser.trunk.parameters()).dtype == torch.float32
    assert other.base_digests == decoder.base_digests


def test_digest_tells_weights_apart():
    state = {"a": torch.randn(100, 3), "b": torch.randn(7)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    assert weights_digest(state) != weights_digest(state | {"b": state["b"] + 0.01})
    assert weights_digest(state) != weights_digest(state | {"a": state["a"].view(3, 100)})


def test_weights_folder_of_the_environment(base_files, monkeypatch):
    monkeypatch.setenv("AEIC_WEIGHTS", str(base_files[0].parent))
    assert locate("stabilityai/turbo", "U-Net") == base_files[0]
    assert locate("somebody/elsewhere/half.ckpt", "VAE decoder") == base_files[1]


def test_hub_cache(base_files, monkeypatch, tmp_path):
    """In the layout that `hf download` writes."""
    snapshot = tmp_path / "hub" / "models--owner--turbo" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    base_files[0].rename(snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert locate("owner/turbo", "U-Net") == snapshot


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stabilityai/sd-turbo", "run `hf download stabilityai/sd-turbo unet/config.json"),
        ("owner/repo/a/file.ckpt", "run `hf download owner/repo a/file.ckpt`"),
        ("/nowhere/turbo", "correct the path, or set AEIC_WEIGHTS"),
    ],
)
def test_missing_base_says_how_to_get_it(name, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("AEIC_WEIGHTS", raising=False)
    with pytest.raises(UserError) as error:
        locate(name, "U-Net")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def damage_unet(turbo, change) -> None:
    file = turbo / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("mid_block.resnets.0.conv1.weight"), "has no mid_block.resnets.0.conv1.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "holds extra, which the decoder has not"),
        (
            lambda state: state.update({"conv_norm_out.weight": torch.ones(3)}),
            r"holds conv_norm_out.weight as \[3\], not \[8\]",
        ),
    ],
)
def test_another_unet_is_refused(base_files, pretrained, change, expected):
    damage_unet(base_files[0], change)
    with pytest.raises(UserError, match=expected):
        OneStepDecoder(L_T, L_RES, pretrained).load_base()


def test_unet_of_other_sizes_is_refused(base_files, pretrained):
    config = base_files[0] / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 3}))
    with pytest.raises(UserError, match="has layers_per_block 3, the config asks for 1"):
        OneStepDecoder(L_T, L_RES, pretrained).load_base()


def test_damaged_unet(base_files, pretrained):
    file = base_files[0] / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot read the U-Net"):
        OneStepDecoder(L_T, L_RES, pretrained).load_base()


# ---------------------------------------------------------------------- the VAE decoder's file


@pytest.mark.parametrize("form", ["plain.pt", "prefixed.ckpt", "plain.safetensors"])
def test_vae_decoder_files(vae, tmp_path, form):
    state = vae.state_dict()
    if form == "plain.pt":
        torch.save(state, tmp_path / form)
    elif form == "prefixed.ckpt":
        torch.save(
            {"state_dict": {f"decoder.{k}": t for k, t in state.items()} | {"loss.w": torch.ones(1)}}, tmp_path / form
        )
    else:
        save_file(state, tmp_path / form)
    read = read_vae_decoder(str(tmp_path / form))
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_lightning_checkpoint_with_callbacks_is_read_without_running_them(vae, tmp_path):
    """Lightning names callback classes in its files; they are not imported, let alone called."""

    class Callback:
        pass

    Callback.__module__, Callback.__qualname__ = "pytorch_lightning.callbacks.gone", "Gone"
    module = types.ModuleType("pytorch_lightning.callbacks.gone")
    module.Gone = Callback
    sys.modules["pytorch_lightning.callbacks.gone"] = module
    try:
        torch.save({"state_dict": vae.state_dict(), "callbacks": {Callback: {"best": 1.0}}}, tmp_path / "half.ckpt")
    finally:
        del sys.modules["pytorch_lightning.callbacks.gone"]
    assert read_vae_decoder(str(tmp_path / "half.ckpt")).keys() == vae.state_dict().keys()


class Malicious:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_else_is_unpickled(vae, tmp_path, capsys):
    torch.save({"state_dict": vae.state_dict(), "extra": Malicious()}, tmp_path / "half.ckpt")
    with pytest.raises(UserError, match="cannot read a VAE decoder"):
        read_vae_decoder(str(tmp_path / "half.ckpt"))
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="cannot read a VAE decoder"):
        read_vae_decoder(str(tmp_path / "old.ckpt"))
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"a": 1}, [1, 2]])
def test_file_without_a_decoder(tmp_path, content):
    torch.save(content, tmp_path / "half.ckpt")
    with pytest.raises(UserError, match="holds no VAE decoder"):
        read_vae_decoder(str(tmp_path / "half.ckpt"))


def test_rank_is_checked(pretrained):
    with pytest.raises(UserError, match="rank must be at least 1"):
        OneStepDecoder(L_T, L_RES, replace(pretrained, pretrained=PretrainedConfig(rank=0)))
