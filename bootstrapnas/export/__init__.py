"""OpenVINO IR of a model: conversion that is verified before it counts, quantisation, running, latency."""

from bootstrapnas.export.causal_runtime import CausalIR, load_causal_ir
from bootstrapnas.export.compression import WeightCompression
from bootstrapnas.export.latency import Latency, LatencySettings, measure_latency, speed_up
from bootstrapnas.export.openvino import EXPORT_FILE, WEIGHT_FORMATS, ExportResult, export_openvino
from bootstrapnas.export.quantisation import Quantisation
from bootstrapnas.export.runtime import IRModel, available_precisions, load_ir, predict_ir
from bootstrapnas.export.verification import ExportError, TaskMetric

__all__ = [
    "EXPORT_FILE",
    "WEIGHT_FORMATS",
    "CausalIR",
    "ExportError",
    "ExportResult",
    "IRModel",
    "Latency",
    "LatencySettings",
    "Quantisation",
    "TaskMetric",
    "WeightCompression",
    "available_precisions",
    "export_openvino",
    "load_causal_ir",
    "load_ir",
    "measure_latency",
    "predict_ir",
    "speed_up",
]
