"""Gen-AFFECT in diffusers, as modular blocks and as a pipeline: a person and a text of expressions in, images out."""

import sys
import warnings

import diffusers
import diffusers.modular_pipelines as modular
import numpy as np
import torch
from diffusers import ModelMixin  # noqa: F401 (diffusers looks it up beside the classes of components)
from diffusers.loaders import SD3LoraLoaderMixin
from PIL import Image, ImageOps

from .genaffect_expressions import GenAffectExpressions
from .genaffect_faces import GenAffectFaceEncoder
from .genaffect_modeling import GenAffectAdapter, SetAttnProcessor, Sharing

# The module name by which model_index.json names the classes imported above; the real one depends on the folder.
sys.modules["genaffect"] = sys.modules[__name__]

COMPONENTS = {
    "transformer": diffusers.SD3Transformer2DModel,
    "vae": diffusers.AutoencoderKL,
    "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    "adapter": GenAffectAdapter,
    "expressions": GenAffectExpressions,
    "identity_encoder": GenAffectFaceEncoder,
    "expression_encoder": GenAffectFaceEncoder,
}
# Settings that a model has of its own: the names in its run, and the values of a folder that says nothing of them.
OWN = {
    "num_inference_steps": ("steps", 24),
    "guidance_identity": ("guidance_identity", 1.0),
    "guidance_expression": ("guidance_expression", 1.5),
    "consistency": ("consistency", 0.0),
}
SMALLEST_SIGMA = 0.05  # below it, the division that turns clean latents into a velocity would only amplify errors
NOISE, TOKENS = 0x6E6F6973, 0x746F6B65  # folded into the seed, so that noise and shared tokens have no key in common


class Step(modular.ModularPipelineBlocks):
    """A block that declares its components, inputs (name, default, meaning) and results as class attributes."""

    model_name, uses, takes, gives = "genaffect", (), (), ()
    expected_components = property(lambda self: [modular.ComponentSpec(name, COMPONENTS[name]) for name in self.uses])
    inputs = property(lambda self: [modular.InputParam(n, default=d, description=t) for n, d, t in self.takes])
    intermediate_outputs = property(lambda self: [modular.OutputParam(name) for name in self.gives])

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        self.run(components, block)
        self.set_block_state(state, block)
        return components, state


# Image.Transpose of each EXIF orientation but 1
MOVES = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def upright(image):
    """The image turned as its EXIF orientation says; no other tag is read, so that a broken one does not matter."""
    image.load()  # Pillow turns a TIFF here, and takes the tag away
    try:
        orientation = image.getexif().get(274, 1)
    except Exception:  # no EXIF block that can be read: Pillow raises errors of any class
        orientation = 1
    return image if orientation not in MOVES else image.transpose(MOVES[orientation])


class EncodeStep(Step):  # latents and face embeddings of the references, expression vectors, initial noise
    uses = ("transformer", "vae", "expressions", "identity_encoder", "expression_encoder")
    takes = (
        ("image", None, "one or more images of one person: PIL images or files"),
        ("expressions", None, "expression grammar: 'joy, anger:0.6, 0.5*fear + 0.5*surprise, AU12L=0.7, face.png'"),
        ("seed", 0, "seed of noise and shared tokens; gives the same images as in genaffect_jax"),
        ("latents", None, "initial noise [E, c, h, w] in place of the seed's"),
    )
    gives = ("parsed", "vectors", "reference_latents", "face", "latents")

    def run(self, c, block):
        if block.image is None or not block.expressions:
            raise ValueError("image and expressions: both are needed")
        given = block.image if isinstance(block.image, (list, tuple)) else [block.image]
        images = torch.cat([self.read(c, image) for image in given])
        latents = c.vae.encode(images.to(c.vae.dtype)).latent_dist.mode().float()
        block.reference_latents = (latents - (c.vae.config.shift_factor or 0)) * c.vae.config.scaling_factor
        block.face = None if c.identity_encoder is None else c.identity_encoder(images)
        block.parsed = c.expressions.parse(block.expressions, lambda file: self.read_expression(c, file))
        block.vectors = torch.from_numpy(np.stack([e.vector for e in block.parsed])).to(images.device)
        if block.latents is None:
            (channels, *sides), key = latents.shape[1:], fold_in(seed_key(block.seed), NOISE)
            noise = [normal(fold_in(key, n), (*sides, channels)) for n in c.expressions.noise_ids(block.parsed)]
            block.latents = torch.from_numpy(np.stack(noise)).permute(0, 3, 1, 2)
        block.latents = block.latents.to(images.device, torch.float32)

    def read(self, c, image):
        """The centre square at the model's size, on white where transparent, float32 [1, 3, S, S] in [-1, 1]."""
        size = c.transformer.config.sample_size * 2 ** (len(c.vae.config.block_out_channels) - 1)
        image = image if isinstance(image, Image.Image) else Image.open(image)
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at half, a quarter or an eighth of its size
        if image.mode[0] in "IF":
            raise ValueError(f"image of mode {image.mode}: grey of more than 8 bits; convert it to 8 bits first")
        rgba = upright(image).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        square = ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS)
        return torch.tensor(np.array(square), device=c.transformer.device).permute(2, 0, 1)[None] / 127.5 - 1

    def read_expression(self, c, file):
        if c.expression_encoder is None:
            raise ValueError(f"expression {file!r}: an image, but this model has no encoder that reads expressions")
        return c.expression_encoder.encode(self.read(c, file))[0].cpu().numpy()


class DenoiseStep(Step):  # noise to latents, chunk by chunk, with guidance and consistent attention
    uses = ("transformer", "scheduler", "adapter", "expressions")
    takes = (
        *((name, None, "from EncodeStep") for name in EncodeStep.gives),
        ("seed", 0, "see EncodeStep"),
        ("num_inference_steps", None, "denoising steps; None for the model's own"),
        ("guidance_scale", None, "joint guidance of identity and expression; replaces the two below"),
        ("guidance_identity", None, "guidance of the identity; 1 is none, None the model's own"),
        ("guidance_expression", None, "guidance of the expression; 1 is none, None the model's own"),
        ("identity_scale", 1.0, "weight of the identity branch, one number or one per block"),
        ("expression_scale", 1.0, "weight of the expression branch, one number or one per block"),
        ("consistency", None, "share of image tokens that the anchors share with all images; None for the model's own"),
        ("anchors", 8, "number of anchors, the first images of the set"),
        ("chunk", 8, "images denoised at once, beside the anchors"),
        ("shared_tokens", None, "order of the image tokens [steps, blocks, L], the first are shared; else the seed's"),
    )
    gives = ("latents",)

    def run(self, c, block):
        if not isinstance(c.transformer.transformer_blocks[0].attn.processor, SetAttnProcessor):
            c.adapter.attach(c.transformer)
        self.complete(c, block)
        if block.guidance_scale is not None:
            branches = [(True, True, 1 - block.guidance_scale), (False, False, block.guidance_scale)]
        else:  # v0 + g_id (v_id - v0) + g_ex (v_id,ex - v_id), by branch: identity dropped, expression dropped, weight
            g_id, g_ex = block.guidance_identity, block.guidance_expression
            branches = [(True, True, 1 - g_id), (False, True, g_id - g_ex), (False, False, g_ex)]
        branches = [branch for branch in branches if branch[2] != 0]
        for name, lowest, highest in (("num_inference_steps", 1, 1000), ("chunk", 1, 1e6), ("consistency", 0, 1)):
            if not lowest <= getattr(block, name) <= highest:
                raise ValueError(f"{name}={getattr(block, name)}: must lie in [{lowest}, {highest}]")
        total, clean = len(block.latents), torch.empty_like(block.latents)
        shared = round(block.consistency * c.transformer.pos_embed.height**2)
        anchors = min(block.anchors, total) if shared and total > 1 else 0
        c.scheduler.set_timesteps(block.num_inference_steps, device=clean.device)
        steps = range(len(c.scheduler.timesteps))
        sharing = [self.sharing(c, block, i, shared, anchors) if anchors else None for i in steps]
        for start in range(anchors, max(total, anchors + 1), block.chunk):
            rows = [*range(anchors), *range(start, min(start + block.chunk, total))]
            clean[rows] = self.denoise(c, block, rows, branches, sharing)
        block.latents = clean

    def complete(self, c, block):
        """Settings that were not given are the model's own, those of the run that trained it."""
        own = ((c.adapter.config.run or {}).get("config") or {}).get("sampling") or {}
        for name, (key, usual) in OWN.items():
            if getattr(block, name) is None:
                setattr(block, name, own.get(key, usual))
        if (solver := own.get("solver", "euler")) != "euler" and isinstance(c.scheduler, COMPONENTS["scheduler"]):
            warnings.warn(
                f"the model's own solver is {solver!r}, which is not here: these are the images of solver 'euler', "
                f"{block.num_inference_steps} steps",
                stacklevel=2,
            )

    def denoise(self, c, block, rows, branches, sharing):
        latents, groups = block.latents[rows], len(branches)
        weights = latents.new_tensor([weight for _, _, weight in branches])
        drop = torch.tensor([branch[:2] for branch in branches], device=latents.device)
        positions = c.transformer.pos_embed.cropped_pos_embed(*latents.shape[2:])
        face = None if block.face is None else block.face[None]
        given = block.reference_latents[None], positions, block.vectors[rows][None], face  # for all branches, once
        conditions = c.adapter(*given, drop[:, 0], drop[:, 1:])
        text, pooled = self.text(c, [block.parsed[row] for row in rows], branches)
        c.adapter.condition(c.transformer, conditions, block.identity_scale, block.expression_scale)
        c.scheduler.set_timesteps(block.num_inference_steps, device=latents.device)
        for i, timestep in enumerate(c.scheduler.timesteps):
            c.adapter.share(c.transformer, sharing[i])
            noisy = latents.repeat(groups, 1, 1, 1)
            velocity = c.transformer(noisy.to(text.dtype), text, pooled, timestep.expand(len(noisy))).sample.float()
            if c.adapter.config.prediction == "x0":
                velocity = (noisy - velocity) / (timestep / 1000).clamp(min=SMALLEST_SIGMA)
            velocity = torch.tensordot(weights, velocity.unflatten(0, (groups, -1)), 1).float()
            latents = c.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents

    def text(self, c, parsed, branches):
        """Prompt embeddings of all branches; for a model without prompts the one-hot rows of its register tokens."""
        device, dtype, registers = c.transformer.device, c.transformer.dtype, c.adapter.config.register_tokens
        if registers:
            images = len(branches) * len(parsed)
            text = torch.eye(registers, device=device, dtype=dtype).expand(images, -1, -1)
            return text, text.new_zeros(images, c.transformer.config.pooled_projection_dim)
        pairs = [c.expressions.embed(parsed, negative=branch[0] and branch[1]) for branch in branches]
        return tuple(torch.cat(parts).to(device, dtype) for parts in zip(*pairs, strict=True))

    def sharing(self, c, block, step, shared, anchors):
        layers, length = len(c.transformer.transformer_blocks), c.transformer.pos_embed.height**2
        if block.shared_tokens is not None:
            order = torch.as_tensor(block.shared_tokens[step])
        else:
            key = fold_in(fold_in(seed_key(block.seed), TOKENS), step)
            order = torch.from_numpy(uniform(key, (layers, length)).argsort(axis=1, kind="stable"))
        return [Sharing(layer[:shared], layer[shared:], anchors) for layer in order.to(c.transformer.device)]


class DecodeStep(Step):  # latents to images
    uses = ("vae",)
    takes = (("latents", None, "from DenoiseStep"), ("chunk", 8, ""), ("output_type", "pil", "pil, np or latent"))
    gives = ("images",)

    def run(self, c, block):
        block.images = block.latents
        if block.output_type != "latent":
            z = block.latents / c.vae.config.scaling_factor + (c.vae.config.shift_factor or 0)
            parts = [c.vae.decode(part.to(c.vae.dtype), return_dict=False)[0].float() for part in z.split(block.chunk)]
            pixels = ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            block.images = pixels.permute(0, 2, 3, 1).cpu().numpy()
            if block.output_type == "pil":
                block.images = [Image.fromarray(image) for image in block.images]


class GenAffectBlocks(modular.SequentialPipelineBlocks):
    model_name = "genaffect"
    block_classes, block_names = [EncodeStep, DenoiseStep, DecodeStep], ["encode", "denoise", "decode"]


class GenAffectPipeline(diffusers.DiffusionPipeline, SD3LoraLoaderMixin):
    """The blocks as a plain pipeline; `GenAffectBlocks().doc` describes the settings."""

    _optional_components = ["identity_encoder", "expression_encoder"]
    text_encoder = text_encoder_2 = None  # load_lora_weights asks for them

    def __init__(
        self, transformer, vae, scheduler, adapter, expressions, identity_encoder=None, expression_encoder=None
    ):
        super().__init__()
        parts = transformer, vae, scheduler, adapter, expressions, identity_encoder, expression_encoder
        self.register_modules(**dict(zip(COMPONENTS, parts, strict=True)))
        adapter.attach(transformer)

    def __call__(self, image, expressions, **settings):
        """The images of a set, in the order of the expressions."""
        return diffusers.ImagePipelineOutput(self.run(image=image, expressions=expressions, **settings).get("images"))

    def save_pretrained(self, save_directory, *args, **options):
        """As of every pipeline; warns of a noise schedule that the folder does not keep."""
        kept = self.scheduler.config.get("shift")
        now = getattr(self.scheduler, "shift", kept)  # not every scheduler has the property
        if now != kept:
            warnings.warn(
                f"{save_directory}: the scheduler's shift is saved as {kept:g}: set_shift({now:g}) is no part of its "
                "configuration; use FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, shift=...)",
                stacklevel=2,
            )
        super().save_pretrained(save_directory, *args, **options)

    def run(self, **inputs):
        """The state after the last block, which holds what was computed on the way."""
        blocks, state = GenAffectBlocks(), modular.PipelineState()
        if unknown := inputs.keys() - set(blocks.input_names):
            raise TypeError(f"unknown settings {sorted(unknown)}; known are {blocks.input_names}")
        for name, value in inputs.items():
            state.set(name, value)
        return blocks(self, state)[1]


def threefry(key, counts):
    """The generator of JAX's random numbers: Threefry-2x32 (Salmon et al. 2011), 20 rounds, on uint32 arrays."""
    keys = [np.asarray(k, np.uint32) for k in (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)]
    a, b = (np.atleast_1d(np.asarray(c, np.uint32)) + k for c, k in zip(counts, keys, strict=False))
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            a = a + b
            b = a ^ ((b << np.uint32(turn)) | (b >> np.uint32(32 - turn)))
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + np.uint32(i + 1)
    return a, b


def seed_key(seed):
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed}: must be 0 to {2**64 - 1}")
    return seed >> 32, seed & 0xFFFFFFFF


def fold_in(key, number):  # jax.random.fold_in
    return tuple(int(x[0]) for x in threefry(key, (0, number)))


def uniform(key, shape):  # jax.random.uniform
    a, b = threefry(key, (0, np.arange(np.prod(shape), dtype=np.uint32)))
    return (((a ^ b) >> np.uint32(9)) | np.uint32(0x3F800000)).view(np.float32).reshape(shape) - np.float32(1)


def normal(key, shape):  # jax.random.normal, up to the last digit of the inverse error function
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    spread = np.maximum(lowest, uniform(key, shape) * (np.float32(1) - lowest) + lowest)
    return (np.sqrt(2) * torch.erfinv(torch.from_numpy(spread).double()).numpy()).astype(np.float32)
