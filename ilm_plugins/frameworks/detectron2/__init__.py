"""detectron2: names of norms (`detectron2_norms`), RetinaNet's head (`retinanet`), configs
(`detectron2_config`), training (`detectron2_training`).
"""
