"""Attention functions of the project, beside those of transformers. The compiler reads this: no torch."""

# the names in compute.attention and in transformers' registry
S2 = "s2"
VARLEN = "varlen"  # torch's variable-length kernel (torch.nn.attention.varlen)
PER_DOCUMENT = "per_document"  # torch's scaled_dot_product_attention, one sequence after the other
SEGMENTED = (VARLEN, PER_DOCUMENT)  # they read the sequences' lengths, and no mask
FLASH = ("flash_attention_2", "flash_attention_3")
LENGTHS_ON_DEVICE = (VARLEN, *FLASH)  # kernels that read cumulative lengths where the row is
JOINING = (*SEGMENTED, *FLASH)  # where several sequences in one row cost no more than each in its own
OURS = (S2, *SEGMENTED)


def register(name: str, group_size: int | None) -> None:
    """Add one of the project's functions to transformers' registry, in this process; other names are left alone."""
    if name == S2:
        from factory.attention import s2

        assert group_size is not None
        s2.register(group_size)
    if name in SEGMENTED:
        from factory.attention import segments

        segments.register(name)
