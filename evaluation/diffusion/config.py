"""Configuration of the samplers of diffusion models; defaults are the published settings. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from common.config import Relation, StrictModel

UnitTime = Annotated[float, Field(ge=0, le=1)]
GuidanceScale = Annotated[float, Field(ge=1)]


class LightningDiTSamplingConfig(StrictModel):
    """How LightningDiT is sampled: the flow's differential equation, with guidance from a time on."""

    sampling_method: Literal["euler", "heun2", "dopri5"] = Field(
        "euler", description="Integrator; dopri5 chooses its own steps, which all samples of a batch share."
    )
    num_sampling_steps: int = Field(250, ge=2, description="Points of the time grid, so one more than Euler's steps.")
    timestep_shift: NonNegativeFloat = Field(
        0.3, description="Below 1 moves the grid towards the noise, above 1 towards the data; 0, like 1, leaves it."
    )
    cfg_scale: GuidanceScale = Field(4.0, description="Strength of guidance; 1: none.")
    cfg_interval_start: UnitTime = Field(
        0.125, description="Guide from this share of the way on: 0 from the noise, 1 at the data alone."
    )
    cfg_channels: PositiveInt | Literal["all"] = Field(
        3, description="Guide so many of the first latent channels. The published scales belong to 3."
    )
    rtol: PositiveFloat = Field(1e-3, description="Relative error of a step of dopri5.")
    atol: PositiveFloat = Field(1e-6, description="Absolute error of a step of dopri5.")


class REGSamplingConfig(StrictModel):
    """How REG is sampled: latent and class token together, by the stochastic or the ordinary equation.

    `REG_SAMPLING_RELATIONS` says which combinations are refused.
    """

    mode: Literal["sde", "ode"] = Field("sde", description="Stochastic (Euler-Maruyama) or ordinary equation.")
    num_steps: PositiveInt = Field(250, description="Steps from noise to data.")
    heun: bool = Field(False, description="ode: correct every step but the last (second order, twice the cost).")
    cfg_scale: GuidanceScale = Field(4.0, description="Strength of guidance; 1: none.")
    cls_cfg_scale: NonNegativeFloat | None = Field(
        None, description="The same for the class token; 0: its conditional velocity; null: cfg_scale."
    )
    guidance_low: UnitTime = Field(0.0, description="Guide from this time (0: data) ...")
    guidance_high: UnitTime = Field(0.8, description="... to this one (1: noise), both included.")


def _heun_needs_ode(sampling: REGSamplingConfig) -> str | None:
    return "found true, which only mode: ode can use." if sampling.heun and sampling.mode == "sde" else None


def _interval_is_not_empty(sampling: REGSamplingConfig) -> str | None:
    if sampling.guidance_low <= sampling.guidance_high:
        return None
    return f"{sampling.guidance_low:g} is above guidance_high {sampling.guidance_high:g}."


# Their keys are those of the section, and their checks take it.
REG_SAMPLING_RELATIONS = (
    Relation(("heun", "mode"), _heun_needs_ode),
    Relation(("guidance_low", "guidance_high"), _interval_is_not_empty),
)
