"""Keys of the papers' MindSpore ports (and the model zoo they stem from), and what other libraries call things."""

from __future__ import annotations


def _by_name(groups: dict[str, str]) -> dict[str, str]:
    """A group's key for every name in it."""
    return {name: key for key, names in groups.items() for name in names.split()}


# Other names of keys that mean the same here.
SYNONYMS = {
    "ckpt_file": "checkpoint_file_path",
    "ckpt_url": "checkpoint_url",
    "dataset_sink_mode": "enable_sink",
    "lr": "lr_max",
    "num_classes": "class_num",
    "output_dir": "output_path",
    "print_per_steps": "log_interval",
    "save_ckpt": "save_checkpoint",
}

# Keys without meaning here: read from files, named in one warning, and left alone. On a command line each is an error
# that names the key that counts, where there is one. Without any are those of parameter server, graph tuning, caches
# and profiling, of initialisation, LARS and Thor, and of inference by other scripts.
IGNORED = _by_name(
    {
        "": "all_reduce_fusion_config boost_mode cache_session_id enable_cache enable_profiling parameter_server "
        "save_graphs save_graphs_path conv_init dense_init damping_decay damping_init frequency lars_coefficient "
        "lars_epsilon use_lars enable_predict_lite_backend enable_predict_lite_mindir img_path infer_label label_path "
        "lite_context_config network_dataset",
        "amp_level": "acc_mode dtype",
        "checkpoint_file_path": "checkpoint_path ckpt_path",
        "data_path": "eval_dataset_path record_path",
        "epoch_size": "lr_end_epoch train_epoch_size",
        "lr_decay_mode": "lr_decay",
        "lr_max": "learning_rate",
        "output_path": "save_checkpoint_path",
        "pre_trained": "filter_weight",
        "resume_ckpt": "has_trained_epoch has_trained_step pretrain_epoch_size start_epoch",
        "run_eval": "eval",
        "save_checkpoint_epochs": "ckpt_interval",
        "train_url": "result_url",
    }
)

# What a file of the ports means where it does not say so itself.
ASSUMED = {
    "pooling": ("dropcov", "--pooling=fast_mpn for a file of the TPAMI port"),
    "use_label_smooth": (False, "as the ports train without that key"),
}

# What timm, torchvision and MindCV call a key or a value, for messages about unknown ones; empty: not there yet.
OTHER_NAMES = _by_name(
    {
        "": "adam rmsprop lars plateau exponential",
        "accumulate_steps": "gradient_accumulation_steps grad_accum_steps grad_accumulation",
        "amp_level": "amp",
        "auto_augment": "aa autoaugment randaugment",
        "betas": "opt_betas beta1 beta2",
        "checkpoint_file_path": "checkpoint",
        "clip_grad": "clip_grad_norm grad_clip clip_value",
        "cooldown_epochs": "lr_cooldown_epochs",
        "crop_ratio": "ratio",
        "crop_scale": "scale",
        "cutmix": "cutmix_alpha",
        "data_path": "data data_dir",
        "device_target": "device",
        "distillation": "distillation_type",
        "drop_path_rate": "drop_path stochastic_depth",
        "drop_rate": "drop dropout",
        "ema_decay": "ema model_ema model_ema_decay",
        "epoch_size": "epochs num_epochs max_epochs",
        "eps": "opt_eps",
        "erasing_mode": "remode",
        "eval_crop_ratio": "crop_pct",
        "eval_image_size": "val_crop_size",
        "flip_probability": "hflip",
        "freeze": "freeze_layers",
        "keep_checkpoint_max": "keep_checkpoint",
        "label_smooth_factor": "label_smoothing smoothing",
        "layer_decay": "lr_layer_decay",
        "lr_decay_mode": "lr_scheduler sched scheduler",
        "lr_end": "min_lr",
        "lr_init": "warmup_lr",
        "lr_max": "base_lr",
        "mix_off_epoch": "mixup_off_epoch",
        "mix_probability": "mixup_prob",
        "mix_switch_probability": "mixup_switch_prob",
        "mixup": "mixup_alpha",
        "net_name": "arch model model_name backbone",
        "num_workers": "workers num_parallel_workers",
        "optimizer": "opt",
        "output_path": "output ckpt_save_dir",
        "pooling": "gp",
        "pre_trained": "initial_checkpoint pretrained weights finetune",
        "resume_ckpt": "resume",
        "random_erasing": "reprob re_prob random_erase",
        "recompute": "grad_checkpointing activation_checkpointing",
        "repeated_augmentation": "aug_repeats ra_reps repeated_aug",
        "run_distribute": "distribute distributed",
        "seed": "random_seed",
        "split": "val_split",
        "teacher": "teacher_model teacher_path",
        "vertical_flip": "vflip",
        "train_image_size": "img_size image_resize input_size train_crop_size",
        "warmup_epochs": "lr_warmup_epochs",
        "weight_decay": "wd",
        # values
        "Ascend": "npu",
        "GPU": "cuda nvidia",
        "cosine": "cosine_decay",
        "poly": "polynomial_decay",
        "steps": "multistep multi_step_decay",
    }
)
