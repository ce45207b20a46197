//! What the disk does by itself: the yardstick for whatever syncs before it answers.

use std::{
    fs::File,
    io::{self, Write},
    time::{Duration, Instant},
};

/// Sizes of the appends, bytes.
pub(crate) const SIZES: [usize; 2] = [16 << 10, 256 << 10];

const TIME: Duration = Duration::from_secs(2);

/// How many appends with an fdatasync each a second there are, for each of [`SIZES`], in the directory for temporary files.
pub(crate) fn appends_a_second() -> io::Result<[f64; SIZES.len()]> {
    let mut rates = [0.0; SIZES.len()];
    for (rate, size) in rates.iter_mut().zip(SIZES) {
        *rate = appends_of(size)?;
    }
    Ok(rates)
}

fn appends_of(size: usize) -> io::Result<f64> {
    let directory = tempfile::tempdir()?;
    let mut file = File::create(directory.path().join("appended"))?;
    let bytes = vec![0xa5; size];
    let begin = Instant::now();
    let mut appends = 0;
    while begin.elapsed() < TIME {
        file.write_all(&bytes)?;
        file.sync_data()?;
        appends += 1;
    }
    Ok(f64::from(appends) / begin.elapsed().as_secs_f64())
}
