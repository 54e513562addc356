"""Names of the linears of a base model that an adapter may touch: its last names, the same in every served family."""

ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
UNEMBED_LINEARS = ("lm_head",)
ADAPTABLE_LINEARS = (*ATTENTION_LINEARS, *MLP_LINEARS, *UNEMBED_LINEARS)
