"""Last names of the linears that an adapter may touch, as the gateway knows them, which loads no model.

Every served family uses these names. A loaded base model's own are in its row of services.model.families.
"""

ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
UNEMBED_LINEARS = ("lm_head",)
ADAPTABLE_LINEARS = (*ATTENTION_LINEARS, *MLP_LINEARS, *UNEMBED_LINEARS)
