#!/usr/bin/env bash
# What cluster/gcp.yaml stands on: a bucket, a network with its firewall, two accounts. Once, as the project's owner:
#     bash cluster/iam/gcp.sh PROJECT BUCKET [REGION ZONE]
set -euo pipefail
project=$1
bucket=$2
region=${3:-us-central1}
zone=${4:-us-central1-a}
export CLOUDSDK_CORE_PROJECT=$project CLOUDSDK_CORE_DISABLE_PROMPTS=1

gcloud services enable compute.googleapis.com iam.googleapis.com cloudresourcemanager.googleapis.com
gcloud storage buckets create "gs://$bucket" --location="$region" --uniform-bucket-level-access \
    --public-access-prevention

# A network of its own: the default one lets the whole world try SSH.
gcloud compute networks create braintum --subnet-mode=custom
gcloud compute networks subnets create braintum --network=braintum --region="$region" --range=10.10.0.0/20 \
    --enable-private-ip-google-access
address=${MY_ADDRESS:-$(curl -fsS https://checkip.amazonaws.com)}
gcloud compute firewall-rules create braintum-ssh --network=braintum --allow=tcp:22 \
    --source-ranges="$address/32" --target-tags=braintum-head
gcloud compute firewall-rules create braintum-nodes --network=braintum --allow=tcp,udp,icmp \
    --source-tags=braintum-head,braintum-worker --target-tags=braintum-head,braintum-worker

for account in braintum-head braintum-worker; do
    gcloud iam service-accounts create "$account"
    gcloud storage buckets add-iam-policy-binding "gs://$bucket" --role=roles/storage.objectUser \
        --member="serviceAccount:$account@$project.iam.gserviceaccount.com"
done
head="serviceAccount:braintum-head@$project.iam.gserviceaccount.com"

# What Ray's autoscaler calls, and what starting an instance takes besides; on instances of this cluster's name only.
permissions=compute.instances.create,compute.instances.delete,compute.instances.get,compute.instances.list
permissions+=,compute.instances.setLabels,compute.instances.setMetadata,compute.instances.setServiceAccount
permissions+=,compute.instances.setTags,compute.disks.create,compute.subnetworks.use
permissions+=,compute.subnetworks.useExternalIp,compute.zoneOperations.get
gcloud iam roles create braintumAutoscaler --project="$project" --permissions="$permissions"
condition=$(mktemp)
cat >"$condition" <<CONDITION
title: this cluster
expression: >-
  resource.type != 'compute.googleapis.com/Instance' ||
  resource.name.startsWith('projects/$project/zones/$zone/instances/ray-braintum-')
CONDITION
gcloud projects add-iam-policy-binding "$project" --member="$head" \
    --role="projects/$project/roles/braintumAutoscaler" --condition-from-file="$condition"
rm "$condition"
gcloud iam service-accounts add-iam-policy-binding "braintum-worker@$project.iam.gserviceaccount.com" \
    --member="$head" --role=roles/iam.serviceAccountUser

# `ray up` of Ray 2.60 wants an account of this name with wide roles, and makes both where they are not there. No node
# has this account; disabled, it is good for nothing, and `ray up` finds it and changes no policy.
spare="ray-autoscaler-sa-v1@$project.iam.gserviceaccount.com"
gcloud iam service-accounts create ray-autoscaler-sa-v1
gcloud iam service-accounts disable "$spare"
for role in storage.objectAdmin compute.admin iam.serviceAccountUser iam.roleViewer; do
    gcloud projects add-iam-policy-binding "$project" --member="serviceAccount:$spare" --role="roles/$role" \
        --condition=None
done
