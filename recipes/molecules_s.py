"""molecules-s: small molecules of up to 9 heavy atoms (C N O F S Cl) in 3D, asked for by size, logP and rings.

    unfog train recipes/molecules_s.py --out RUN [--minutes M] [--resume]

Data: the shipped set, 17,794 training molecules of 19,819 (sources: NOTICE). 2.0M parameters, 4 MB at half precision; 0.6 s of
one core a step, 65 minutes in all. Of 1,000 samples (`unfog evaluate molecules-s -n 1000 --seed 1000`; real held-out molecules in
brackets): valid 96.6 % (100), of these unique 98.7 % (100), novel 73.2 %; all four geometry checks 98.8 % (100); stable by EDM's
tables of distances 83.0 % (82.5); FCD 1.8 (0.6); as many rings as asked 85.1 %; logP off by 0.55 (1.27 to other prompts).
"""

RECIPE = {
    "name": "molecules-s",
    "kind": "molecule",
    "data": "molecules-s",
    "options": {"hydrogens": "counted"},
    "network": "molecule",
    "settings": {"width": 160, "pair": 48, "depth": 6, "heads": 5},
    "dropout": 0.0,
    "schedule": {"name": "cosine"},
    "prediction": "x0",
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": -0.3,
    "noise_std": 1.4,
    "drop_text": 0.15,
    "batch": 128,
    "accumulate": 1,
    "steps": 6500,
    "lr": 2e-3,
    "warm_up": 200,
    "decay": 0.3,
    "ema": 0.08,
    "report_steps": 500,
    "defaults": {"steps": 50, "scale": 1.0, "sampler": "dpmpp_2m_sde"},
    "licences": [
        "compounds listed by PubChem, through chemicals 1.5.2, Caleb Bell and contributors, MIT",
        "pieces of molecules of MOSES (ZINC Clean Leads), through molsets 0.3.1, Insilico Medicine, MIT",
    ],
}

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
