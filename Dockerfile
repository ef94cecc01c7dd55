# The default task image of Determined 0.38.1 with the packages that detsd needs. Build it if tasks
# start often, or if they cannot reach a package index:
#
#   docker build -t REGISTRY/detsd:1 . && docker push REGISTRY/detsd:1
#
# Then name it in the experiment file:
#
#   environment:
#     image: REGISTRY/detsd:1
FROM determinedai/pytorch-ngc-dev:0736b6d
WORKDIR /opt/detsd
COPY requirements.txt startup-hook.sh ./
COPY constraints constraints
RUN bash -e startup-hook.sh
# The step above has installed the harness. Containers need not do so again, at 8 s of CPU each.
ENV DET_SKIP_PIP_INSTALL=1
WORKDIR /
