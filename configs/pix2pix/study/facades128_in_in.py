# Not in the papers: Facades at 128 pixels, IN / IN.
_base_ = "_base_/facades128.py"
