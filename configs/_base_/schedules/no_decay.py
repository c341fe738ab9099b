# What the authors' detectors and segmentors train without weight decay, by
# parts of the names of parameters.
no_decay = {
    'absolute_pos_embed': dict(decay_mult=0.0),
    'relative_position_bias_table': dict(decay_mult=0.0),
    'rpe_table': dict(decay_mult=0.0),
    'norm': dict(decay_mult=0.0),
}
