"""Keys of the YAML files that the papers' MindSpore ports (and the model zoo they stem from) have."""

from __future__ import annotations

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
# that names the key that counts, where there is one.
IGNORED = {
    # parameter server, graph tuning, caches and profiling of the ports' launchers
    "acc_mode": "amp_level",
    "all_reduce_fusion_config": "",
    "boost_mode": "",
    "cache_session_id": "",
    "dtype": "amp_level",
    "enable_cache": "",
    "enable_profiling": "",
    "parameter_server": "",
    "save_graphs": "",
    "save_graphs_path": "",
    # initialisation and optimisers that the project does not have (LARS, Thor)
    "conv_init": "",
    "dense_init": "",
    "damping_decay": "",
    "damping_init": "",
    "frequency": "",
    "lars_coefficient": "",
    "lars_epsilon": "",
    "learning_rate": "lr_max",
    "lr_decay": "lr_decay_mode",
    "lr_end_epoch": "epoch_size",
    "use_lars": "",
    # progress of an earlier training, which a checkpoint knows
    "has_trained_epoch": "resume_ckpt",
    "has_trained_step": "resume_ckpt",
    "pretrain_epoch_size": "resume_ckpt",
    "start_epoch": "resume_ckpt",
    "train_epoch_size": "epoch_size",
    # checkpoints, evaluation and inference in other places or by other scripts
    "checkpoint_path": "checkpoint_file_path",
    "ckpt_interval": "save_checkpoint_epochs",
    "ckpt_path": "checkpoint_file_path",
    "enable_predict_lite_backend": "",
    "enable_predict_lite_mindir": "",
    "eval": "run_eval",
    "eval_dataset_path": "data_path",
    "filter_weight": "pre_trained",
    "img_path": "",
    "infer_label": "",
    "label_path": "",
    "lite_context_config": "",
    "network_dataset": "",
    "record_path": "data_path",
    "result_url": "train_url",
    "save_checkpoint_path": "output_path",
}

# What a file of the ports means where it does not say so itself.
ASSUMED = {
    "pooling": ("dropcov", "--pooling=fast_mpn for a file of the TPAMI port"),
    "use_label_smooth": (False, "as the ports train without that key"),
}
