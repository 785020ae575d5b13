"""A sparse training is the optimizer in the trainers of Lightning and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tune_sparsity import SparseTraining, lpss

pytestmark = pytest.mark.slow
STEPS = 75  # 5 epochs of 240 examples by 16


def zeros_of(model: nn.Module, sparse: SparseTraining) -> float:
    weights = [dict(model.named_parameters())[layer.name] for layer in sparse.layers]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def test_lightning_trains_to_the_exact_sparsity_and_resumes(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    y = torch.arange(240) % 4
    x = torch.randn(240, 6, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(4, 6)[y]

    class Network(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> SparseTraining:
            self.sparse = lpss(self, sparsity=0.8, total_steps=self.trainer.estimated_stepping_batches)
            return self.sparse

    def trained(epochs: int, resumed: Path | None = None) -> Network:
        torch.manual_seed(0)
        network = Network()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=5, limit_train_batches=None, accelerator="cpu", enable_checkpointing=False, **quiet
        )
        trainer.fit_loop.max_epochs = 5
        stop = lightning.pytorch.callbacks.LambdaCallback(
            on_train_epoch_end=lambda trainer, _: setattr(trainer, "should_stop", trainer.current_epoch + 1 >= epochs)
        )
        trainer.callbacks.append(stop)
        trainer.fit(network, DataLoader(TensorDataset(x, y), batch_size=16), ckpt_path=resumed)
        if epochs < 5:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
        return network

    whole = trained(5)
    assert whole.sparse.total_steps == whole.sparse.steps == STEPS
    assert zeros_of(whole, whole.sparse) == whole.sparse.sparsity() == pytest.approx(0.8, abs=1e-3)
    assert float((whole.net(x).argmax(1) == y).float().mean()) > 0.7
    trained(2)
    again = trained(5, tmp_path / "half.ckpt")
    assert again.sparse.steps == STEPS
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_transformers_trainer_trains_to_the_exact_sparsity_and_resumes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    y = torch.arange(240) % 4
    ids = torch.randint(0, 10, (240, 8), generator=torch.Generator().manual_seed(0)) + 10 * y[:, None]
    rows = [
        {"input_ids": ids[i], "attention_mask": torch.ones(8, dtype=torch.long), "labels": y[i]} for i in range(240)
    ]
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=4,
        max_position_embeddings=16,
    )

    def trained(resumed: str | None = None) -> tuple[nn.Module, SparseTraining]:
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        sparse = lpss(model, sparsity=0.8, total_steps=STEPS)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=5,
            per_device_train_batch_size=16,
            report_to=[],
            save_strategy="epoch",
            use_cpu=True,
            disable_tqdm=True,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(sparse, lambda step: 1.0)  # the schedule is lpss's own
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(sparse, constant))
        trainer.train(resume_from_checkpoint=resumed)
        return model, sparse

    model, sparse = trained()
    assert sparse.steps == STEPS
    assert zeros_of(model, sparse) == sparse.sparsity() == pytest.approx(0.8, abs=1e-4)
    other, again = trained(str(tmp_path / "checkpoint-30"))
    assert again.steps == STEPS
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
