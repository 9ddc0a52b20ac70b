"""What is fused, in C, for a CPU: how it is made here (`build`), and how it is called (`kernels`)."""
