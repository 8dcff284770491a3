# ILM Norm paper, Table 6, IN / IN (Facades).
_base_ = "./_base_/pix2pix.py"
