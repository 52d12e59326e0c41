//! The arguments of every subcommand.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

/// Make exported ONNX models smaller and faster, without retraining.
#[derive(Debug, Parser)]
#[command(
    name = "paring",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Print errors only
    #[arg(
        short,
        long,
        global = true,
        help_heading = "Common options",
        conflicts_with = "verbose"
    )]
    pub(super) quiet: bool,
    /// Print more; twice for everything
    #[arg(short, long, global = true, help_heading = "Common options", action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// When to use colour
    #[arg(long, global = true, help_heading = "Common options", value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    pub(super) color: Colour,
    /// Read the model into memory instead of mapping it: for files that others may truncate
    #[arg(long, global = true, help_heading = "Common options")]
    pub(super) no_mmap: bool,
    /// Follow links to weights that end inside this folder (a download cache, say)
    #[arg(
        long,
        global = true,
        help_heading = "Common options",
        value_name = "DIR"
    )]
    pub(super) follow_links: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Rewrite a model with a recipe and passes, validate and time it, and write it back
    Optimize(Optimize),
    /// Show what is inside a model
    Inspect(Inspect),
    /// Show what differs between two models: exits 0 when nothing, 1 when something, 2 on trouble
    Diff(Diff),
    /// Run two models on the same samples and compare their outputs
    Compare(Compare),
    /// Time a model, or two in turn
    Bench(Bench),
    /// Check that a model is valid
    Check(Check),
    /// Print a model in the ONNX textual syntax
    Text(Text),
    /// List the passes, or show one with its options
    Passes(Named),
    /// List the ready-made recipes, or print one
    Recipes(Named),
    /// Print the JSON schema of recipes, for editors
    Schema,
}

/// The inputs that a model is run with.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Running {
    /// The shape of an input for running: NAME=1,3,224,224
    #[arg(long = "input", value_name = "NAME=DIMS")]
    pub(super) inputs: Vec<String>,
    /// The size of a symbolic dimension for running: NAME=N
    #[arg(long = "dim", value_name = "NAME=N")]
    pub(super) dims: Vec<String>,
    /// The seed of random inputs and of passes
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) seed: u64,
    /// Threads for passes and for the engine
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: u16,
}

#[derive(Debug, clap::Args)]
pub(super) struct Optimize {
    /// The model; - is standard input
    #[arg(value_name = "IN")]
    pub(super) input: PathBuf,
    /// Where to write the result; - is standard output. May be the input
    #[arg(short, long, value_name = "OUT")]
    pub(super) output: PathBuf,
    /// A ready-made recipe (see `paring recipes`) or a YAML file [default: clean, unless --pass is given]
    #[arg(long, value_name = "NAME|FILE")]
    pub(super) recipe: Option<String>,
    /// A pass to run after the recipe, with options; may be given again
    #[arg(long = "pass", value_name = "NAME[:key=value,...]")]
    pub(super) passes: Vec<String>,
    /// Calibration data: an .npz with one array per input, first axis samples
    #[arg(long, value_name = "FILE.npz")]
    pub(super) data: Option<PathBuf>,
    /// Evaluation data, which scores the result and feeds the limits; with `label` for accuracy
    #[arg(long, value_name = "FILE.npz")]
    pub(super) eval: Option<PathBuf>,
    #[command(flatten)]
    pub(super) running: Running,
    /// The output whose largest element is the predicted class [default: the first]
    #[arg(long, value_name = "NAME")]
    pub(super) label_output: Option<String>,
    /// Write the sizes given by --dim and --input into the model, too
    #[arg(long)]
    pub(super) fix_dims: bool,
    /// Write a report; may be given again
    #[arg(long = "report", value_name = "FILE.json")]
    pub(super) reports: Vec<PathBuf>,
    /// Don't run the models to compare their outputs
    #[arg(long)]
    pub(super) no_validate: bool,
    /// Don't time the models
    #[arg(long)]
    pub(super) no_time: bool,
    /// Let lossy passes rewrite a model whose outputs can't be compared
    #[arg(long)]
    pub(super) allow_unvalidated: bool,
    /// Whether weights go into a file beside the model
    #[arg(long, value_enum, default_value_t = External::Auto, value_name = "WHEN")]
    pub(super) external_data: External,
    /// Leave out the metadata entry that says which pass made what
    #[arg(long)]
    pub(super) no_provenance: bool,
    /// Stop after this pass has run, and write what there is
    #[arg(long, value_name = "PASS")]
    pub(super) stop_after: Option<String>,
    /// Print the graph to standard error after this pass, or after every one that changed it
    #[arg(long, value_name = "PASS|all")]
    pub(super) print_ir_after: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum External {
    /// When the input has such a file, or the model would pass 2 GB
    Auto,
    Always,
    Never,
}

#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// The model; - is standard input
    pub(super) model: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    /// The first model
    pub(super) before: PathBuf,
    /// The second model
    pub(super) after: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print the changes by operator type only, as `git diff --stat` does by file
    #[arg(long, conflicts_with = "json")]
    pub(super) stat: bool,
    /// Count other names and another order as changes
    #[arg(long)]
    pub(super) strict: bool,
    /// Print all operators of both models with their alignment, unchanged ones too
    #[arg(long, requires = "json")]
    pub(super) alignment: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Compare {
    /// The first model
    pub(super) before: PathBuf,
    /// The second model
    pub(super) after: PathBuf,
    /// Samples: an .npz with one array per input, first axis samples [default: seeded random ones]
    #[arg(long, value_name = "FILE.npz")]
    pub(super) data: Option<PathBuf>,
    /// The output whose largest element is the predicted class [default: the first]
    #[arg(long, value_name = "NAME")]
    pub(super) label_output: Option<String>,
    #[command(flatten)]
    pub(super) running: Running,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    /// The model
    pub(super) model: PathBuf,
    /// Another model, timed in turn with the first
    pub(super) other: Option<PathBuf>,
    #[command(flatten)]
    pub(super) running: Running,
    /// Measure for at least this long
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub(super) min_time: f64,
    /// Show where the time goes, by operator
    #[arg(long)]
    pub(super) profile: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The model; - is standard input
    pub(super) model: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Text {
    /// The model; - is standard input
    pub(super) model: PathBuf,
    /// Print all elements of large tensors
    #[arg(long)]
    pub(super) full: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// Show this one
    pub(super) name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
