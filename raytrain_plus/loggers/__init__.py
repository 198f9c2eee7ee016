"""Loggers: write a run's values to W&B, MLflow, TensorBoard, CSV files, or a place of one's own.

They are fed from the run's journal, by a process of their own on the coordinator's node.
"""

from raytrain_plus.loggers.csv_file import CSVLogger as CSVLogger
from raytrain_plus.loggers.mlflow import MLflowLogger as MLflowLogger
from raytrain_plus.loggers.protocol import LoggedRun as LoggedRun
from raytrain_plus.loggers.protocol import Logger as Logger
from raytrain_plus.loggers.protocol import LoggerError as LoggerError
from raytrain_plus.loggers.protocol import Row as Row
from raytrain_plus.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
from raytrain_plus.loggers.wandb import WandbLogger as WandbLogger
