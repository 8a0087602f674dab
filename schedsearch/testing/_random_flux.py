"""A FLUX pipeline of random weights, as small as wanted: for structure and speed of code, never for quality.

Imports torch and diffusers when called.
"""

from __future__ import annotations

from typing import Any


def random_flux(layers: int = 2, single: int = 2) -> Any:
    """A ``FluxPipeline`` with random weights (seed 0) and without text encoders; a pixel of its latents is a token.

    Args:
        layers: double-stream blocks, 32 channels wide.
        single: single-stream blocks.
    """
    import diffusers
    import torch

    library: Any = diffusers  # its lazy classes have no types
    torch.manual_seed(0)
    transformer = library.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=layers,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    vae = library.AutoencoderKL(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()
    pipe = library.FluxPipeline(
        scheduler=library.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
