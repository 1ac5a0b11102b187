"""Certificates that a test's own servers show."""

import subprocess


def make_certificate(folder, name="localhost"):
    """For `name`, signed by itself: the files of certificate and key."""
    files = folder / "certificate.pem", folder / "key.pem"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={name}"
    names = ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(files[1]), "-out", str(files[0])]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return files
