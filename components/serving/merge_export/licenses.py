"""License fields in the front matter of a model card."""

import re
from pathlib import Path

OTHER = "other"
# https://huggingface.co/docs/hub/repositories-licenses; the Hub rejects other values of `license`.
IDENTIFIERS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
"""
HUB_LICENSES = frozenset(IDENTIFIERS.split())


def front_matter(license: str, folder: Path) -> dict[str, str]:
    """Returns the license fields of the front matter; a license without a Hub identifier is `other` with its name.

    Args:
        license: License in the model card of the base model.
        folder: Folder of the merged model, which may have a license file.
    """
    if license.lower() in HUB_LICENSES:
        return {"license": license.lower()}
    fields = {"license": OTHER}
    if license.lower() != OTHER:
        fields["license_name"] = slug(license.lower())
    file = next((file.name for file in sorted(folder.glob("LICEN[SC]E*"))), "")
    return fields | ({"license_link": file} if file else {})


def slug(name: str) -> str:
    """Returns a name as an identifier of the Hub: without spaces and special characters."""
    return re.sub(r"[^\w./]+", "-", name, flags=re.ASCII).strip("-./") or OTHER
