_base_ = "mmpretrain::_base_/default_runtime.py"
custom_imports = dict(
    imports=["reproduction.models", "reproduction.layers"], allow_failed_imports=False
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
# A line of a log has the means of all iterations since the last; the accuracy is of their batches.
log_processor = dict(
    window_size=100, mean_pattern=r".*(loss|time|data_time|grad_norm|accuracy_top).*"
)
