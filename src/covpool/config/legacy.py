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

# Keys without meaning here: read, named in one warning, and left alone.
IGNORED = frozenset(
    {
        # parameter server, graph tuning, caches and profiling of the ports' launchers
        "acc_mode",
        "all_reduce_fusion_config",
        "boost_mode",
        "cache_session_id",
        "dtype",
        "enable_cache",
        "enable_profiling",
        "parameter_server",
        "save_graphs",
        "save_graphs_path",
        # initialisation and optimisers that the project does not have (LARS, Thor)
        "conv_init",
        "dense_init",
        "damping_decay",
        "damping_init",
        "frequency",
        "lars_coefficient",
        "lars_epsilon",
        "learning_rate",
        "lr_decay",
        "lr_end_epoch",
        "use_lars",
        # progress of an earlier training: resume_ckpt knows it
        "has_trained_epoch",
        "has_trained_step",
        "pretrain_epoch_size",
        "start_epoch",
        "train_epoch_size",
        # checkpoints, evaluation and inference in other places or by other scripts
        "checkpoint_path",
        "ckpt_interval",
        "ckpt_path",
        "enable_predict_lite_backend",
        "enable_predict_lite_mindir",
        "eval",
        "eval_dataset_path",
        "filter_weight",
        "img_path",
        "infer_label",
        "label_path",
        "lite_context_config",
        "network_dataset",
        "record_path",
        "result_url",
    }
)
