_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
