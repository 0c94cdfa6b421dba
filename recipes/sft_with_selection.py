"""A standard SFT script with three more lines: each round trains on rows with gradients similar to the queries'.

    python sft_with_selection.py --model Qwen/Qwen2.5-0.5B --dataset trl-lib/Capybara --queries task.jsonl --rounds 4
    accelerate launch --config_file accelerate/ddp.yaml sft_with_selection.py ...

A round is an epoch of `--fraction` of the dataset. The share of the run's time that scoring takes is in the log
(selection/seconds); --max-candidates bounds it. Without --queries (clean rows of the task) it trains on the
hardest rows, which selects damaged rows where there are some (benchmarks/results/online_selection_cpu.md).
"""

import argparse

from trl import SFTConfig, SFTTrainer

from hf_select import DataSelectionCallback, online_scores, read_dataset  # 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--queries", help="clean rows of the task")
    parser.add_argument("--output-dir", default="sft_with_selection")
    parser.add_argument("--fraction", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--max-candidates", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--use-cpu", action="store_true")
    args = parser.parse_args()

    trainer = SFTTrainer(
        args.model,
        args=SFTConfig(
            output_dir=args.output_dir,
            num_train_epochs=args.rounds,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            max_length=args.max_length,
            logging_steps=10,
            use_cpu=args.use_cpu,
            bf16=not args.use_cpu,
            report_to="none",
        ),
        train_dataset=read_dataset(args.dataset),
        eval_dataset=read_dataset(args.queries) if args.queries else None,
    )
    # 2
    score = online_scores.GradientSimilarity(trainer.eval_dataset) if args.queries else online_scores.loss
    trainer.add_callback(  # 3
        DataSelectionCallback(trainer, score, fraction=args.fraction, max_candidates=args.max_candidates, warmup=1)
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
