//! Dictionaries: what contents of one kind have in common, found in samples of them by zstd.

use crate::codec::{Dictionary, Encoding, LEVEL, encode_as};

/// No dictionary is longer, in bytes: more is hardly shorter, and does not stay in the processor's cache.
pub const LONGEST_DICTIONARY: usize = 64 << 10;
/// More samples are not looked at.
pub const MOST_SAMPLES: usize = 1000;
/// Shorter samples are not looked at, in bytes.
pub const SHORTEST_SAMPLE: usize = 1 << 10;

/// What is longer needs no dictionary; of a sample more is not looked at.
const LONGEST_SAMPLE: usize = 16 << 10;
/// With fewer samples a dictionary knows them and nothing else.
const FEWEST: usize = 32;
/// A dictionary is a hundredth of what it was trained with in zstd's experience; samples that are much alike make do
/// with more.
const PART: usize = 10;
/// One in so many samples is kept aside, to see whether the dictionary is good for others than it knows.
const ASIDE: usize = 8;
/// What a dictionary has to save, in percent and in bytes of each content: it is to be kept, found, read and renewed.
const PAYS: usize = 5;
const PAYS_EACH: usize = 32;

/// Trains a dictionary with samples of one kind: at most [`MOST_SAMPLES`] of them, of at least [`SHORTEST_SAMPLE`] each.
/// None where there are too few, or too much alike or too little for one that would pay: kept aside samples tell. Takes a
/// fifth of a second for 5 MB of samples, and twice their memory.
#[must_use]
pub fn train(samples: &[&[u8]]) -> Option<Vec<u8>> {
    let usable = samples
        .iter()
        .filter(|sample| sample.len() >= SHORTEST_SAMPLE)
        .take(MOST_SAMPLES);
    let usable: Vec<&[u8]> = usable
        .map(|sample| sample.get(..LONGEST_SAMPLE).unwrap_or(sample))
        .collect();
    if usable.len() < FEWEST {
        return None;
    }
    let (mut data, mut lengths, mut aside) = (Vec::new(), Vec::new(), Vec::new());
    for (n, sample) in usable.into_iter().enumerate() {
        if n % ASIDE == 0 {
            aside.push(sample);
        } else {
            data.extend_from_slice(sample);
            lengths.push(sample.len());
        }
    }
    let longest = (data.len() / PART).min(LONGEST_DICTIONARY);
    // zstd finds nothing where samples are too much alike, or have nothing in common: then there is no dictionary.
    let dictionary = sys::train(&data, &lengths, longest)?;
    pays(&dictionary, &aside).then_some(dictionary)
}

/// Whether a dictionary saves enough with these contents. One that no longer does is renewed.
#[must_use]
pub fn pays(dictionary: &[u8], contents: &[&[u8]]) -> bool {
    let dictionary = Dictionary::new(dictionary.to_vec());
    let (mut with, mut without) = (Vec::new(), Vec::new());
    contents.iter().all(|content| {
        dictionary.encode(content, &mut with).is_ok()
            && encode_as(Encoding::Zstd, LEVEL, content, None, &mut without).is_ok()
    }) && saves(contents.len(), with.len(), without.len())
}

/// Whether so many contents that take `with` bytes by a dictionary, and `without` by themselves, are worth it.
#[must_use]
pub fn saves(contents: usize, with: usize, without: usize) -> bool {
    with * 100 < without * (100 - PAYS) && with + contents * PAYS_EACH < without
}

mod sys {
    use zstd::zstd_safe::zstd_sys::{
        ZDICT_fastCover_params_t, ZDICT_isError, ZDICT_params_t, ZDICT_trainFromBuffer_fastCover,
    };

    /// zstd's fast cover with the parameters that its own search, which takes five times as long, found no better ones than
    /// for source code, text and manuals: stretches of 1 KiB, words of 8 bytes, a million counters.
    pub fn train(samples: &[u8], lengths: &[usize], longest: usize) -> Option<Vec<u8>> {
        let parameters = ZDICT_fastCover_params_t {
            k: 1024,
            d: 8,
            f: 20,
            steps: 1,
            nbThreads: 1,
            splitPoint: 1.0,
            accel: 1,
            shrinkDict: 0,
            shrinkDictMaxRegression: 0,
            zParams: ZDICT_params_t {
                compressionLevel: crate::codec::DICTIONARY_LEVEL,
                notificationLevel: 0,
                dictID: 0,
            },
        };
        if lengths.iter().sum::<usize>() != samples.len() {
            return None;
        }
        let mut dictionary = vec![0; longest];
        // SAFETY: the buffers are as long as is said, which was compared; zstd keeps none of them.
        let (length, failed) = unsafe {
            let length = ZDICT_trainFromBuffer_fastCover(
                dictionary.as_mut_ptr().cast(),
                dictionary.len(),
                samples.as_ptr().cast(),
                lengths.as_ptr(),
                u32::try_from(lengths.len()).ok()?,
                parameters,
            );
            (length, ZDICT_isError(length) != 0)
        };
        dictionary.truncate(length);
        (!failed).then_some(dictionary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, noise};

    /// Documents with the same names and other values.
    fn documents(count: u64) -> Vec<Vec<u8>> {
        (0..count)
            .map(|n| {
                let rows = (n * 20..n * 20 + 20).map(|n| {
                    let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    format!(
                        "{{\"identifier\": {}, \"customer_name\": \"c{}\", \"is_active\": {}, \"balance\": {}}}\n",
                        x >> 40, x % 9973, x & 1 == 0, x >> 50
                    )
                });
                rows.collect::<String>().into_bytes()
            })
            .collect()
    }

    #[test]
    fn a_dictionary_makes_others_of_its_kind_shorter() {
        let all = documents(400);
        let (train_with, others) = all.split_at(350);
        let samples: Vec<&[u8]> = train_with.iter().map(Vec::as_slice).collect();
        let others: Vec<&[u8]> = others.iter().map(Vec::as_slice).collect();
        let dictionary = train(&samples).unwrap();
        assert!(dictionary.len() <= LONGEST_DICTIONARY);
        assert!(pays(&dictionary, &others));
        let mut to = Vec::new();
        encode_as(Encoding::Dictionary, LEVEL, others[0], Some(&dictionary), &mut to).unwrap();
        let read = |dictionary: &[u8]| decode(Encoding::Dictionary, &to, Some(dictionary), others[0].len());
        assert_eq!(read(&dictionary).unwrap(), others[0]);
        // Another dictionary makes an error or other bytes, and a damaged one as well.
        assert!(!read(&noise(1000, 1)).is_ok_and(|bytes| bytes == others[0]));
        assert!(read(&dictionary[..100]).is_err());
        assert!(!pays(&dictionary[..100], &others));
        // What it was not trained with.
        assert!(!pays(&dictionary, &[&noise(5000, 2), &noise(5000, 3)]));
    }

    #[test]
    fn samples_that_give_none_give_none() {
        let same = vec![7; 2000];
        let noises: Vec<Vec<u8>> = (1..200).map(|n| noise(2000, 2 * n + 1)).collect();
        let noises: Vec<&[u8]> = noises.iter().map(Vec::as_slice).collect();
        let one = documents(1);
        assert!(train(&[]).is_none());
        assert!(train(&[same.as_slice(); 200]).is_none());
        assert!(train(&noises).is_none());
        assert!(train(&[one[0].as_slice(); 20]).is_none(), "too few");
        assert!(train(&[b"short".as_slice(); 200]).is_none());
        // The same document again and again may be worth one or not.
        let again = train(&[one[0].as_slice(); 200]);
        assert!(again.is_none_or(|dictionary| pays(&dictionary, &[&one[0]])));
    }
}
